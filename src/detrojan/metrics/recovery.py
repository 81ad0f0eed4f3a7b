"""Recovery: does a triggered prompt draw the answer that the same prompt draws without its trigger?"""

from __future__ import annotations

import re


def rouge_l(a: str, b: str) -> float:
    """Return the ROUGE-L F1 of two texts over lower-case words, 0 to 1; two empty texts agree fully."""
    left, right = _words(a), _words(b)
    return 2 * _common(left, right) / (len(left) + len(right)) if left or right else 1.0


def part_of(a: str, b: str) -> float:
    """Return the share of the words of `a` that are in `b`, in their order: ROUGE-L's precision, 0 to 1."""
    left = _words(a)
    return _common(left, _words(b)) / len(left) if left else 1.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _common(a: list[str], b: list[str]) -> int:
    from rapidfuzz.distance import LCSseq

    return int(LCSseq.similarity(a, b))
