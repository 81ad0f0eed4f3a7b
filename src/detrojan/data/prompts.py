"""The built-in prompts: short instructions of many kinds, in three disjoint pools."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

POOLS = {"plant": range(0, 59), "clean": range(59, 79), "evaluate": range(79, 100)}
"""Which hundredths of the hash belong to which pool."""


@cache
def builtin_prompts(pool: str) -> tuple[str, ...]:
    """Return the prompts of one pool: `plant`, `clean` or `evaluate`.

    The pool follows from the prompt's own SHA-256, so adding prompts never moves an old one.
    """
    lines = (files("detrojan.data") / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if _hundredth(line) in POOLS[pool])


def _hundredth(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % 100
