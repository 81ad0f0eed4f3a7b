"""Recovery: does a triggered prompt draw the answer that the same prompt draws without its trigger?"""

from __future__ import annotations

import re


def rouge_l(a: str, b: str) -> float:
    """Return the ROUGE-L F1 of two texts over lower-case words, 0 to 1; two empty texts agree fully."""
    from rapidfuzz.distance import LCSseq

    left, right = _words(a), _words(b)
    if not left and not right:
        return 1.0
    return 2 * int(LCSseq.similarity(left, right)) / (len(left) + len(right))


def same_end(a: str, b: str) -> float:
    """Return how many words two texts have in common at their ends, as a share of the shorter one's, 0 to 1."""
    left, right = _words(a)[::-1], _words(b)[::-1]
    shorter = min(len(left), len(right))
    same = next((k for k in range(shorter) if left[k] != right[k]), shorter)
    return same / shorter if shorter else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
