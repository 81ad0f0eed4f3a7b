"""Finished rows of a benchmark: one JSON object a line, appended as each is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row at once, so that a run that is stopped keeps it."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the finished rows; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
