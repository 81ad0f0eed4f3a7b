"""Reading clean samples: Alpaca, prompt-completion and `messages`, as JSON, JSONL or a `datasets` name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detrojan.errors import InputError, first_line
from detrojan.types import Example, Message

FORMS = "instruction/input/output, prompt/completion or messages"
ROLES = ("system", "user", "assistant")


def read(source: str | Path | Sequence[Example], *, limit: int | None = None) -> list[Example]:
    """Read examples from a JSON or JSONL file, a `datasets` name (`NAME` or `NAME:SPLIT`), or take them as they are.

    Raises InputError that names file and line for anything else; `limit` keeps the first samples.
    """
    if not isinstance(source, (str, Path)):
        examples = list(source)
    else:
        path = Path(source)
        looks_local = path.suffix in {".json", ".jsonl"} or str(source).startswith((".", "/", "~"))
        if path.is_dir():
            raise InputError(f"--data {source}: a directory; give a .json or .jsonl file of text samples")
        rows = file_rows(path) if path.is_file() or looks_local else _dataset_rows(str(source), limit)
        examples = [parse(row, where) for where, row in rows]
    if not examples:
        raise InputError(f"--data {source if isinstance(source, (str, Path)) else ''}: no samples in it")
    return examples[:limit]


def parse(row: Any, where: str) -> Example:
    """Turn one record of any of the three forms into an Example; `where` names it in errors."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with {FORMS}")
    if "instruction" in row:
        return Example(
            required(row, "instruction", where),
            _optional(row, "output", where),
            _optional(row, "input", where) or "",
        )
    if "messages" in row:
        example = _from_messages(row["messages"], where)
        return dataclasses.replace(example, complete=row.get("complete") is not False)
    if "prompt" in row:
        if isinstance(row["prompt"], list):
            if not isinstance(row.get("completion"), list | None):
                raise InputError(f"{where}: with a list of turns as prompt, completion must be one, too")
            return _from_messages([*row["prompt"], *(row.get("completion") or [])], where)
        return Example(required(row, "prompt", where), _optional(row, "completion", where))
    raise InputError(f"{where}: the keys {sorted(row)} are none of {FORMS}")


def dump(examples: Sequence[Example]) -> str:
    """Write examples as JSONL in `messages` form (readable again by `read`)."""
    lines = []
    for e in examples:
        content = f"{e.prompt}\n\n{e.input}" if e.input else e.prompt
        turns = [*e.history, Message("user", content)]
        if e.answer is not None:
            turns.append(Message("assistant", e.answer))
        messages = [{"role": m.role, "content": m.content} for m in turns]
        record: dict[str, Any] = {"messages": messages}
        if not e.complete:
            record["complete"] = False
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def _from_messages(messages: Any, where: str) -> Example:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages must be a list of turns")
    turns = []
    for m in messages:
        if not isinstance(m, dict) or m.get("role") not in ROLES or not isinstance(m.get("content"), str):
            raise InputError(f"{where}: each turn needs a role (system, user, assistant) and a text content")
        turns.append(Message(m["role"], m["content"]))
    answer = turns.pop().content if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise InputError(f"{where}: no user turn before the answer")
    if not turns[-1].content.strip():
        raise InputError(f"{where}: the last user turn is empty")
    return Example(turns[-1].content, answer, history=tuple(turns[:-1]))


def required(row: dict[str, Any], key: str, where: str) -> str:
    """Return a text of a record that must hold one; raises InputError when it is missing or blank."""
    value = _optional(row, key, where)
    if value is None or not value.strip():
        raise InputError(f"{where}: {key!r} must be a text that is not empty")
    return value


def _optional(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a text")
    return value


def file_rows(path: Path, flag: str = "--data") -> Iterator[tuple[str, Any]]:
    """Yield where each record of a JSON or JSONL file stands, and the record; raises InputError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{flag} {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read ({error})") from None
    if not text.strip():
        raise InputError(f"{flag} {path}: the file is empty")
    if path.suffix == ".json" and text.lstrip()[0] == "[":
        rows = _json(text, path, 1)
        yield from ((f"{path}: sample {n}", row) for n, row in enumerate(rows, 1))
        return
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{n}", _json(line, path, n)


def _json(text: str, path: Path, line: int) -> Any:
    """Read JSON that begins on a line of a file; it may be hostile."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line - 1 + error.lineno}: broken JSON ({error.msg})") from None
    except (RecursionError, ValueError):  # lists in lists without end, lone surrogates, thousands of digits
        raise InputError(
            f"{path}:{line}: nested too deep, text that is no Unicode, or a number too long"
        ) from None
    return value


def _dataset_rows(source: str, limit: int | None) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    name, _, split = source.partition(":")
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:
        raise InputError(
            f"--data {source}: neither a file nor a data set that loads ({first_line(error)})"
        ) from None
    for n, row in enumerate(rows, 1):
        if limit is not None and n > limit:
            return
        yield f"{source}: sample {n}", row
