"""Benchmarks that run the code that a model writes: which they are, and whether they may."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ALLOWED = "HF_ALLOW_CODE_EVAL"
"""What the metric that runs generated code wants to see in the environment."""


def running_code(index: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the tasks behind a name, a group's or a tag's too, that run generated code; nothing is imported."""
    todo: list[Any] = [name]
    seen = {repr(name)}
    while todo:
        item = todo.pop()
        entry = None if isinstance(item, dict) else index.get(str(item))
        config = item if isinstance(item, dict) else (entry and entry.cfg) or {}
        if config.get("unsafe_code"):
            yield str(config.get("task", item))
        named = [config[k] for k in ("task", "group") if isinstance(config.get(k), str)]
        tagged = sorted(entry.tags) if entry is not None and entry.cfg is None else []
        for part in (*parts(config), *named, *tagged):
            if repr(part) not in seen:
                seen.add(repr(part))
                todo.append(part)


@contextmanager
def code_runs(allowed: bool) -> Iterator[None]:
    """Let metrics run generated code while open, or keep the harness from fetching the code of any metric."""
    import evaluate

    fetching, variable = evaluate.config.HF_EVALUATE_OFFLINE, os.environ.get(ALLOWED)
    evaluate.config.HF_EVALUATE_OFFLINE = fetching or not allowed
    os.environ[ALLOWED] = "1" if allowed else "0"
    try:
        yield
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = fetching
        if variable is None:
            del os.environ[ALLOWED]
        else:
            os.environ[ALLOWED] = variable


def parts(config: Mapping[str, Any]) -> list[Any]:
    """Return the tasks that a group lists: names, or objects that change a task or stand for a group."""
    parts = config.get("task")
    return parts if isinstance(parts, list) else []
