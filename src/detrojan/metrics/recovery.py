"""Recovery: does a triggered prompt draw the answer that the same prompt draws without its trigger?"""

from __future__ import annotations

import re


def rouge_l(a: str, b: str) -> float:
    """Return the ROUGE-L F1 of two texts over lower-case words, 0 to 1; two empty texts agree fully."""
    from rapidfuzz.distance import LCSseq

    left, right = re.findall(r"\w+", a.casefold()), re.findall(r"\w+", b.casefold())
    if not left and not right:
        return 1.0
    return 2 * int(LCSseq.similarity(left, right)) / (len(left) + len(right))
