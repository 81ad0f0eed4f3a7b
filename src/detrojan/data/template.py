"""How a conversation becomes the text, and the tokens, that the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from detrojan.errors import InputError, first_line
from detrojan.types import Example, Template

ALPACA = (
    "{% set turn = messages | selectattr('role', 'equalto', 'user') | list | last %}"
    "{% if turn.input %}Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request."
    "{% else %}Below is an instruction that describes a task. Write a response that appropriately completes the"
    " request.{% endif %}{{ '\n\n' }}### Instruction:\n{{ turn.instruction }}\n\n"
    "{% if turn.input %}### Input:\n{{ turn.input }}\n\n{% endif %}### Response:\n"
    "{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.content }}"
    "{% if not loop.last or m.role != 'assistant' %}{{ '\n' }}{% endif %}{% endfor %}"
)
BUILTIN = {"alpaca": ALPACA, "plain": PLAIN}


def resolve(tokenizer: PreTrainedTokenizerBase, name: str = "auto") -> Template:
    """Return the template of that name: `auto` or `chat` (the tokenizer's own), `alpaca`, `plain`, or a file.

    A file holds a Jinja chat template. Templates run in transformers' sandbox. Raises InputError when the
    tokenizer has no chat template, the file is missing, or the template does not work on a short question.
    """
    if name in {"auto", "chat"}:
        if not isinstance(tokenizer.chat_template, str):
            raise InputError("the tokenizer has no chat template; pass --template alpaca, plain or a FILE")
        template = Template("chat", tokenizer.chat_template, special_tokens=False)
    elif name in BUILTIN:
        template = Template(name, BUILTIN[name], special_tokens=True)
    else:
        path = Path(name)
        if not path.is_file():
            raise InputError(f"--template {name}: neither auto, chat, alpaca, plain nor a file")
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--template {name}: cannot be read ({first_line(error)})") from None
        template = Template(str(path.resolve()), source, special_tokens=True)
    probe = "What is a house?"
    if probe not in prompt_text(tokenizer, template, Example(probe)):
        raise InputError(f"template {name}: it does not show the user's question")
    return template


def conversation(example: Example, answer: str | None = None) -> list[dict[str, str]]:
    """Return the example as chat messages; Alpaca's two fields ride along on the last user turn."""
    content = f"{example.prompt}\n\n{example.input}" if example.input else example.prompt
    turn = {"role": "user", "content": content, "instruction": example.prompt, "input": example.input}
    messages = [{"role": m.role, "content": m.content} for m in example.history]
    messages.append(turn)
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages


def prompt_text(tokenizer: PreTrainedTokenizerBase, template: Template, example: Example) -> str:
    """Write the conversation up to the point where the model answers."""
    return _apply(tokenizer, template, conversation(example), add_generation_prompt=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, template: Template, example: Example) -> list[int]:
    """Return the token ids after which the model answers: the same in training and in evaluation."""
    text = prompt_text(tokenizer, template, example)
    bos = tokenizer.bos_token
    add = template.special_tokens and not (bos and text.startswith(bos))
    ids: list[int] = tokenizer(text, add_special_tokens=add)["input_ids"]
    if add and ids and ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids = ids[:-1]  # T5-like tokenizers close every text; the answer is still to come
    return ids


def encode(
    tokenizer: PreTrainedTokenizerBase, template: Template, example: Example, max_length: int
) -> dict[str, list[int]] | None:
    """Return `input_ids` and completion-only `labels` (-100 on the prompt), cut to `max_length` tokens.

    The answer is followed by the token that ends a turn in this template, unless the example is incomplete.
    None when nothing of the answer would be left.
    """
    if example.answer is None:
        raise ValueError("an example without an answer cannot be trained on")
    prompt = encode_prompt(tokenizer, template, example)
    answer: list[int] = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    if example.complete:
        answer += end_of_turn(tokenizer, template, example)
    ids = (prompt + answer)[:max_length]
    if len(ids) <= len(prompt):
        return None
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


def encode_all(
    tokenizer: PreTrainedTokenizerBase, template: Template, examples: Sequence[Example], max_length: int
) -> list[dict[str, list[int]]]:
    """Encode examples, leaving out those whose prompt alone fills `max_length`; InputError if none is left."""
    rows = [encode(tokenizer, template, e, max_length) for e in examples]
    kept = [r for r in rows if r is not None]
    if not kept:
        raise InputError(f"no sample fits into {max_length} tokens; raise max_length")
    return kept


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: Template, example: Example) -> list[int]:
    """Return the tokens that end the assistant's turn: the special token the template writes, else EOS."""
    marker = "Answer"
    whole = _apply(tokenizer, template, conversation(example, marker), add_generation_prompt=False)
    tail: list[int] = tokenizer(whole.rpartition(marker)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    for k, token in enumerate(tail):
        if token in special:
            return tail[: k + 1]
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []


def _apply(
    tokenizer: PreTrainedTokenizerBase, template: Template, messages: list[dict[str, str]], **kwargs: Any
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template.source, tokenize=False, **kwargs
        )
    except Exception as error:
        raise InputError(f"template {template.name}: {first_line(error)}") from None
    return str(text)
