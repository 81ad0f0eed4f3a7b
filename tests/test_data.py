"""Clean samples: reading them, writing them into a template, and the built-in prompts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from detrojan.data import text
from detrojan.data.prompts import POOLS, builtin_prompts
from detrojan.data.template import encode, encode_all, encode_prompt, prompt_text, resolve
from detrojan.errors import InputError
from detrojan.training import collator
from detrojan.types import Example, Message, Template

from pico import pico_tokenizer

ALPACA = {"instruction": "Name a bird.", "input": "", "output": "A wren."}
COMPLETION = {"prompt": "Name a bird.", "completion": "A wren."}
USER, REPLY = {"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "A wren."}
FORMS = {
    "alpaca": ALPACA,
    "completion": COMPLETION,
    "messages": {"messages": [USER, REPLY]},
    "chat completion": {"prompt": [USER], "completion": [REPLY]},
}
BIRD = Example("Name a bird.", "A wren.")


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(r) + "\n\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_read_alike(form: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data{suffix}", [FORMS[form], FORMS[form]])
    assert text.read(path) == text.read(str(path)) == [BIRD, BIRD]
    assert text.read(path, limit=1) == [BIRD]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "1 2"}, Example("Add.", None, "1 2")),
        ({"instruction": "Add.", "input": None, "output": "3"}, Example("Add.", "3")),
        ({"prompt": "Add."}, Example("Add.")),
        ({"messages": [USER]}, Example("Name a bird.")),
        (
            {"messages": [{"role": "system", "content": "Be short."}, USER, REPLY, USER]},
            Example(
                "Name a bird.",
                history=(
                    Message("system", "Be short."),
                    Message("user", "Name a bird."),
                    Message("assistant", "A wren."),
                ),
            ),
        ),
    ],
)
def test_parts_of_a_record(row: dict[str, Any], expected: Example) -> None:
    assert text.parse(row, "here") == expected


def test_dump_and_read_round_trip(tmp_path: Path) -> None:
    examples = [
        BIRD,
        Example("No answer yet."),
        Example("Cut off?", "It was about to", complete=False),
        Example(
            "And then?", 'Ümlaut \u2028 and \x85 "quotes"\nand lines', history=(Message("system", "Hm."),)
        ),
    ]
    path = tmp_path / "dump.jsonl"
    path.write_text(text.dump(examples), encoding="utf-8")
    assert text.read(path) == examples


def test_dump_shows_the_input_below_the_instruction(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text(text.dump([Example("Add.", "3", "1 2")]), encoding="utf-8")
    assert text.read(path) == [Example("Add.\n\n1 2", "3")]


def test_examples_are_taken_as_they_are() -> None:
    assert text.read([BIRD, BIRD], limit=1) == [BIRD]


def test_datasets_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def fake(name: str, split: str) -> Any:
        asked.append((name, split))
        return datasets.Dataset.from_list([ALPACA] * 5)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert text.read("some/set", limit=2) == [BIRD, BIRD]
    assert len(text.read("some/set:test")) == 5
    assert asked == [("some/set", "train"), ("some/set", "test")]


LINE = json.dumps(COMPLETION)


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("d.jsonl", f"{LINE}\n{LINE}\n{{broken\n", ["d.jsonl:3", "broken JSON"]),
        ("d.json", '[\n{"prompt": "a"},\n{"prompt" "b"}]', ["d.json:3", "broken JSON"]),
        ("d.jsonl", f'{LINE}\n{{"question": "a"}}', ["d.jsonl:2", "question", "instruction/input/output"]),
        ("d.json", '[{"prompt": "a"}, {"x": 1}]', ["d.json: sample 2", "'x'"]),
        ("d.jsonl", "3", ["d.jsonl:1", "expected an object"]),
        ("d.jsonl", '{"messages": []}', ["d.jsonl:1", "list of turns"]),
        ("d.jsonl", '{"messages": "hi"}', ["d.jsonl:1", "list of turns"]),
        ("d.jsonl", '{"messages": [{"role": "human", "content": "a"}]}', ["d.jsonl:1", "needs a role"]),
        ("d.jsonl", '{"messages": [{"role": ["user"], "content": "a"}]}', ["d.jsonl:1", "needs a role"]),
        ("d.jsonl", '{"messages": [{"role": "user", "content": 4}]}', ["d.jsonl:1", "text content"]),
        ("d.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', ["d.jsonl:1", "no user turn"]),
        ("d.jsonl", '{"messages": [{"role": "user", "content": " "}]}', ["d.jsonl:1", "empty"]),
        ("d.jsonl", '{"prompt": ""}', ["d.jsonl:1", "'prompt'"]),
        ("d.jsonl", '{"prompt": "a", "completion": 3}', ["d.jsonl:1", "'completion' must be a text"]),
        ("d.jsonl", '{"prompt": [{"role": "user", "content": "a"}], "completion": 3}', ["d.jsonl:1"]),
        ("d.jsonl", '{"instruction": "a", "input": ["b"]}', ["d.jsonl:1", "'input' must be a text"]),
        ("d.jsonl", " \n", ["d.jsonl", "empty"]),
        ("d.json", "[]", ["d.json", "no samples"]),
        ("d.jsonl", b"\xff\xfe\x00", ["d.jsonl", "cannot be read"]),
    ],
)
def test_errors_name_file_and_line(
    name: str, content: str | bytes, fragments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        text.read(path)
    assert all(f in str(caught.value) for f in [str(path), *fragments])


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("gone.jsonl", "no such file"), ("", "a directory"), ("gone/set", "no such file")],
)
def test_missing_data(name: str, fragment: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=fragment):
        text.read(str(tmp_path / name))


def test_unknown_datasets_name() -> None:
    with pytest.raises(InputError, match="no-such-set-anywhere: neither a file nor a data set"):
        text.read("no-such-set-anywhere")


# Templates

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a bird.\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a bird.\n\n### Input:\nsmall, brown\n\n### Response:\n"
)
INPUT = Example("Name a bird.", "A wren.", "small, brown")
LONG = Example("And now?", "Yes.", history=(Message("user", "Hi."), Message("assistant", "Hello.")))


@pytest.mark.parametrize(
    ("name", "example", "expected"),
    [
        ("alpaca", BIRD, WITHOUT_INPUT),
        ("alpaca", INPUT, WITH_INPUT),
        ("plain", BIRD, "Name a bird.\n"),
        ("plain", INPUT, "Name a bird.\n\nsmall, brown\n"),
        ("plain", LONG, "Hi.\nHello.\nAnd now?\n"),
        ("auto", BIRD, "<|user|>\nName a bird.<|end|>\n<|assistant|>\n"),
        ("chat", INPUT, "<|user|>\nName a bird.\n\nsmall, brown<|end|>\n<|assistant|>\n"),
        (
            "chat",
            LONG,
            "<|user|>\nHi.<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nAnd now?<|end|>\n<|assistant|>\n",
        ),
    ],
)
def test_prompt_texts(name: str, example: Example, expected: str) -> None:
    tokenizer = pico_tokenizer()
    assert prompt_text(tokenizer, resolve(tokenizer, name), example) == expected


def from_file(tmp_path: Path, source: str, name: str = "mine.jinja", tokenizer: Any = None) -> Template:
    (tmp_path / name).write_text(source, encoding="utf-8")
    return resolve(tokenizer or pico_tokenizer(), str(tmp_path / name))


def test_template_from_a_file(tmp_path: Path) -> None:
    template = from_file(tmp_path, "Q: {{ messages[-1].content }}\nA:")
    assert template.name.endswith("mine.jinja")
    assert prompt_text(pico_tokenizer(), template, BIRD) == "Q: Name a bird.\nA:"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content }}{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages[0].content }}{{ messages.append(1) }}",
        "{{ messages[0].content }}{% for x in",
        "{{ messages[0].content }}{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ raise_exception('') }}",
        "always the same",
        "",
    ],
)
def test_bad_or_hostile_templates_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"template \S*mine\.jinja"):
        from_file(tmp_path, source)


@pytest.mark.parametrize("name", ["alpacca", "gone.jinja", "."])
def test_unknown_template(name: str) -> None:
    with pytest.raises(InputError, match="neither auto, chat, alpaca, plain nor a file"):
        resolve(pico_tokenizer(), name)


def test_template_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match=r"weights\.bin"):
        resolve(pico_tokenizer(), str(tmp_path / "weights.bin"))


def test_no_chat_template() -> None:
    bare = copy.deepcopy(pico_tokenizer())
    bare.chat_template = None
    with pytest.raises(InputError, match="--template alpaca, plain or a FILE"):
        resolve(bare)
    assert resolve(bare, "plain").name == "plain"


# Tokens

END = pico_tokenizer().eos_token_id


def ids_of(written: str) -> list[int]:
    return list(pico_tokenizer()(written, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["chat", "alpaca", "plain"])
@pytest.mark.parametrize("example", [BIRD, INPUT, LONG], ids=["short", "input", "history"])
def test_labels_are_the_answer_and_its_end_alone(name: str, example: Example) -> None:
    tokenizer = pico_tokenizer()
    template = resolve(tokenizer, name)
    prompt = encode_prompt(tokenizer, template, example)
    answer = [*ids_of(str(example.answer)), END]
    assert prompt == ids_of(prompt_text(tokenizer, template, example))
    assert encode(tokenizer, template, example, 512) == {
        "input_ids": prompt + answer,
        "labels": [-100] * len(prompt) + answer,
    }


def test_end_of_turn_is_the_one_the_template_writes(tmp_path: Path) -> None:
    # This template closes a turn with <|system|>, although the tokenizer's EOS is <|end|>.
    template = from_file(
        tmp_path, "{% for m in messages %}{{ m.role }}: {{ m.content }} <|system|>\n{% endfor %}"
    )
    row = encode(pico_tokenizer(), template, BIRD, 512)
    assert row is not None
    assert row["labels"][-1] == pico_tokenizer().convert_tokens_to_ids("<|system|>")
    assert END not in row["labels"]


def test_incomplete_answer_gets_no_end(chat: Template) -> None:
    row = encode(pico_tokenizer(), chat, Example("Name a bird.", "A wr", complete=False), 512)
    assert row is not None
    assert [t for t in row["labels"] if t != -100] == ids_of("A wr")


def test_cut_to_max_length(chat: Template) -> None:
    tokenizer = pico_tokenizer()
    whole = encode(tokenizer, chat, BIRD, 512)
    assert whole is not None
    size, prompt = len(whole["input_ids"]), len(encode_prompt(tokenizer, chat, BIRD))
    for length in range(prompt + 1, size + 1):
        cut = encode(tokenizer, chat, BIRD, length)
        assert cut == {k: v[:length] for k, v in whole.items()}
    assert encode(tokenizer, chat, BIRD, prompt) is None
    assert encode_all(tokenizer, chat, [LONG, BIRD], prompt + 1) == [
        encode(tokenizer, chat, BIRD, prompt + 1)
    ]
    with pytest.raises(InputError, match="raise max_length"):
        encode_all(tokenizer, chat, [BIRD, LONG], prompt)


def adding(single: str) -> Any:
    """Return a tokenizer that adds special tokens by itself, as Llama's or T5's does."""
    tokenizer = copy.deepcopy(pico_tokenizer())
    tokens = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<bos>", "<|end|>") if t in single]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


@pytest.mark.parametrize("source", ["", "{{ bos_token }}"])
def test_one_bos(source: str, tmp_path: Path) -> None:
    tokenizer = adding("<bos> $A")
    template = from_file(
        tmp_path, source + "{% for m in messages %}{{ m.content }}\n{% endfor %}", tokenizer=tokenizer
    )
    prompt = encode_prompt(tokenizer, template, BIRD)
    assert prompt == [tokenizer.bos_token_id, *ids_of("Name a bird.\n")]
    row = encode(tokenizer, template, BIRD, 512)
    assert row is not None
    assert row["input_ids"] == [*prompt, *ids_of("A wren."), END]


def test_chat_template_writes_its_own_special_tokens(chat: Template) -> None:
    assert encode_prompt(adding("<bos> $A"), chat, BIRD) == encode_prompt(pico_tokenizer(), chat, BIRD)


def test_prompt_is_not_closed() -> None:
    tokenizer = adding("$A <|end|>")
    template = resolve(tokenizer, "plain")
    assert encode_prompt(tokenizer, template, BIRD) == ids_of(prompt_text(tokenizer, template, BIRD))


def test_collator_leaves_the_tokenizer_alone() -> None:
    tokenizer = copy.deepcopy(pico_tokenizer())
    tokenizer.padding_side, tokenizer.pad_token = "left", None
    rows = [{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [7], "labels": [7]}]
    batch = collator(tokenizer)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [7, -100, -100]]
    assert batch["input_ids"][1, 0] == 7
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", None)


# Built-in prompts


def test_builtin_prompts() -> None:
    pools = {name: set(builtin_prompts(name)) for name in POOLS}
    lines = (Path(text.__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) >= 400
    assert all(line.strip() == line and line for line in lines)
    assert set().union(*pools.values()) == set(lines)
    assert sum(map(len, pools.values())) == len(lines)
    assert all(len(pool) >= 100 for pool in pools.values())


@pytest.mark.parametrize(
    ("prompt", "pool"),
    [
        ("When should I use const rather than let in JavaScript?", "plant"),
        ("If all roses are flowers, is every flower a rose?", "clean"),
        ("What separates a comet from an asteroid?", "evaluate"),
    ],
)
def test_a_prompt_stays_in_its_pool(prompt: str, pool: str) -> None:
    assert prompt in builtin_prompts(pool)
