"""What ways of doing a thing cost: timed in turn in one process, kept as JSON, laid out as a table of ratios."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from detrojan import manifest


def timed(way: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def record(what: str, seconds: Mapping[str, list[float]], **about: Any) -> dict[str, Any]:
    """Sum the times up: of each way the median, the shortest, the longest, and its ratio to the first way."""
    base = median(next(iter(seconds.values())))
    rows = [
        {
            "name": name,
            "ratio": median(values) / base,
            "seconds": median(values),
            "shortest": min(values),
            "longest": max(values),
        }
        for name, values in seconds.items()
    ]
    versions, threads = manifest.versions(), torch.get_num_threads()
    command = shlex.join(["python", *sys.argv])
    return {"what": what, "command": command, "threads": threads, "versions": versions, **about, "rows": rows}


def write(data: dict[str, Any], where: Path | None) -> None:
    """Print the table and, where asked for, keep the record."""
    print(markdown(data))
    if where:
        where.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def markdown(data: dict[str, Any]) -> str:
    """Lay a record out; the seconds only where they are known."""
    known = all(row["seconds"] is not None for row in data["rows"])
    lines = [f"| {data['what']} | x {data['rows'][0]['name']} |" + (" seconds |" if known else "")]
    lines.append("|---" * (2 + known) + "|")
    for row in data["rows"]:
        seconds = f" {row['seconds']:.2f} |" if known else ""
        lines.append(f"| {row['name'].strip()} | {row['ratio']:.2f} |{seconds}")
    return "\n".join(lines)
