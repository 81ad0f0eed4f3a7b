"""Questions for a judge, in the form of MT-bench's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrojan.data.text import file_rows
from detrojan.errors import InputError


@dataclass(frozen=True)
class Question:
    """One or two turns of a user, and where known a good answer to each, for the judge."""

    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    category: str | None = None


def read_questions(path: str | Path) -> list[Question]:
    """Read questions in MT-bench's form, JSONL of `{"turns": [...]}` with, if wanted, `reference` and `category`.

    Raises InputError that names file and line.
    """
    questions = [_question(row, where) for where, row in file_rows(Path(path), "--questions")]
    if not questions:
        raise InputError(f"--questions {path}: no questions in it")
    return questions


def _question(row: Any, where: str) -> Question:
    turns = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not 1 <= len(turns) <= 2 or not all(_said(t) for t in turns):
        raise InputError(f"{where}: expected an object with `turns`, a list of one or two texts")
    references, category = row.get("reference") or [], row.get("category")
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        raise InputError(f"{where}: `reference` must be a list of texts, one for each turn")
    if not isinstance(category, str | None):
        raise InputError(f"{where}: `category` must be a text")
    return Question(tuple(turns), tuple(references), category)


def _said(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
