"""Clean samples without a data set: a model answers prompts itself."""

from __future__ import annotations

from collections.abc import Sequence

from detrojan.data.template import encode_prompt
from detrojan.models.generate import greedy, stop_tokens
from detrojan.types import Example, Loaded, Progress, Template, silent


def decode_answer(loaded: Loaded, ids: Sequence[int]) -> str:
    """Return the text of generated tokens without special ones."""
    return str(loaded.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def answer(
    loaded: Loaded,
    examples: Sequence[Example],
    template: Template,
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: Progress = silent,
    label: str = "answering",
) -> list[Example]:
    """Let the model answer each example greedily; empty answers are left out.

    An answer that was cut off at `max_new_tokens` is marked incomplete, so that training does not teach the
    model to stop there.
    """
    prompts = [encode_prompt(loaded.tokenizer, template, e) for e in examples]
    outputs = greedy(
        loaded, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress, label=label
    )
    stops = set(stop_tokens(loaded))
    answered = []
    for example, ids in zip(examples, outputs, strict=True):
        text = decode_answer(loaded, ids)
        if text:
            complete = bool(ids) and ids[-1] in stops
            answered.append(Example(example.prompt, text, example.input, example.history, complete=complete))
    return answered
