"""Intervals of measured fractions."""

from __future__ import annotations

from detrojan.types import Interval


def wilson(hits: int, total: int) -> Interval:
    """Return the 95 % Wilson score interval of hits / total; (0, 1) when nothing was measured."""
    from scipy.stats import binomtest

    if total == 0:
        return Interval(0.0, 1.0)
    ci = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return Interval(float(ci.low), float(ci.high))
