"""Labelled texts: JSON, JSONL or CSV with `text` (or `sentence`) and `label`."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detrojan.data.class_labels import class_numbers
from detrojan.data.text import file_rows, required
from detrojan.errors import InputError, first_line
from detrojan.types import Labelled

TEXTS = ("text", "sentence")


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each record of a JSON, JSONL or CSV file stands, and the record."""
    yield from _csv_rows(path) if path.suffix == ".csv" else file_rows(path)


def parse_rows(
    rows: Iterable[tuple[str, Any]], names: tuple[str, ...]
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Return n texts, their n class numbers and what the classes are called; raises InputError with the line."""
    texts, labels, places = [], [], []
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object with text and label")
        key = next((k for k in TEXTS if k in row), None)
        if key is None or "label" not in row:
            raise InputError(
                f"{where}: needs text (or sentence) and label, has {', '.join(map(str, row)) or 'nothing'}"
            )
        texts.append(required(row, key, where))
        labels.append(row["label"].strip() if isinstance(row["label"], str) else row["label"])
        if labels[-1] in ("", None):
            raise InputError(f"{where}: 'label' must not be empty")
        places.append(where)
    numbers, known = class_numbers(labels, places.__getitem__, names)
    return texts, numbers, known


def shorten(data: Labelled, words: int) -> Labelled:
    """Return the texts cut after so many words: a trigger that is put anywhere is then read to its end."""
    return dataclasses.replace(data, inputs=[" ".join(text.split()[:words]) for text in data.inputs])


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for cells in reader:
                line = reader.line_num
                if cells and len(cells) != len(header):  # a comma in a text without quotes would cut it short
                    raise InputError(f"{path}:{line}: {len(cells)} cells, but the header has {len(header)}")
                if cells:
                    yield f"{path}:{line}", dict(zip(header, cells, strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: broken CSV ({first_line(error)})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
