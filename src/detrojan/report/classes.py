"""What a defense found out about the classes of a classifier, and how each class is classified."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detrojan.report.curves import INK, LINES, axes_of, inline
from detrojan.report.words import DASH, Stage, known, percent, printable

DRAWN = 24
"""Bars at most: the classes with the highest scores."""
LISTED = 200
"""Rows of a table at most, as data sets of 20,000 classes exist."""
READ = ("evidence", "measure", "scores", "suspicious", "threshold", "classes")
"""The notes of a defense that are shown here."""
PLAIN = re.compile(r"[A-Za-z0-9 ,.()/+_-]+")
"""Names that are written beside a bar: no mathematics for matplotlib, no sign that its font lacks."""
SHORT = 16


@dataclass(frozen=True)
class Scored:
    """One class: what speaks for a backdoor, and how far it stands out."""

    number: int
    name: str
    value: float | None
    score: float
    """Infinite where it is not a finite number: nothing else moved."""
    suspicious: bool

    @property
    def words(self) -> str:
        """Its number and, where it has one, its name."""
        return str(self.number) if self.name == str(self.number) else f"{self.number} ({self.name})"


def class_names(rows: Sequence[Stage], notes: Any) -> list[str]:
    """Return what the classes are called: as the last stage that knows it says, or else the notes."""
    told = [s.result for s in reversed(rows)] + ([notes] if isinstance(notes, dict) else [])
    found = next((c for each in told if isinstance(c := each.get("classes"), list) and c), [])
    return [printable(name, 60) for name in found]


def scored(notes: Any, names: Sequence[str]) -> list[Scored]:
    """Read the scores in the notes of a defense, the highest first; [] where there are none."""
    notes = notes if isinstance(notes, dict) else {}
    keys = ("scores", "evidence", "suspicious")
    scores, evidence, marked = (v if isinstance(v := notes.get(k), list) else [] for k in keys)
    evidence = [float(c) if known(c) else None for c in evidence[: len(scores)]]
    evidence += [None] * (len(scores) - len(evidence))
    moved = sorted(c for c in evidence if c is not None)
    middle = moved[len(moved) // 2] if moved else 0.0
    found = [
        Scored(k, named(k, names), value, _score(score, value, middle), k in marked)
        for k, (score, value) in enumerate(zip(scores, evidence, strict=True))
    ]
    return sorted(found, key=lambda c: -c.score)


def named(number: int, names: Sequence[str]) -> str:
    """Return the name of a class, its number where it has none."""
    return names[number] if 0 <= number < len(names) else str(number)


def _score(score: Any, value: float | None, middle: float) -> float:
    """Return a score; null stands for an infinite one, whose sign is that of the value against the middle."""
    if known(score):
        return float(score)
    return -math.inf if score == -math.inf or (value is not None and value < middle) else math.inf


def listed(found: Sequence[Scored]) -> list[tuple[str, str, str, str]]:
    """Return (class, value, score, whether it is suspicious) of the classes with the highest scores."""
    return [
        (
            c.words,
            DASH if c.value is None else f"{c.value:.4g}",
            f"{c.score:.2f}" if math.isfinite(c.score) else "infinite" if c.score > 0 else "-infinite",
            "suspicious" if c.suspicious else "",
        )
        for c in found[:LISTED]
    ]


def singled_out(found: Sequence[Scored], target: int | None = None) -> list[str]:
    """Say which classes are suspicious, and whether the class that a measured trigger draws is among them."""
    marked = ", ".join(c.words for c in [c for c in found if c.suspicious][:LISTED])
    drawn = next((c for c in found if c.number == target), None)
    if not marked:
        though = f", though the measured trigger draws class {drawn.words}" if drawn else ""
        return [f"No class was singled out as suspicious{though}."] if found else []
    among = "is" if drawn and drawn.suspicious else "is not"
    said = f"The measured trigger draws class {drawn.words}, which {among} among them." if drawn else ""
    return [f"Singled out as suspicious: {marked}.", *([said] if said else [])]


def class_chart(found: Sequence[Scored], threshold: float | None) -> str:
    """Draw the highest scores as one SVG of horizontal bars; "" where there are none.

    A bar that ends in an arrow is infinite.
    """
    if not found:
        return ""
    bars = found[:DRAWN]
    finite = [c.score for c in bars if math.isfinite(c.score)]
    right = 1.12 * max([1.0, threshold or 0.0, *finite])
    left = min(
        [-0.1 * right if any(c.score == -math.inf for c in bars) else 0.0, *(1.12 * s for s in finite)]
    )
    at = [min(max(c.score, left), right) for c in bars]
    with axes_of((4.6, 0.85 + 0.2 * len(bars))) as axes:
        for suspicious, (colour, _, _) in zip((False, True), LINES.values(), strict=True):
            places = [y for y, c in enumerate(bars) if c.suspicious is suspicious]
            if places:
                label = "suspicious" if suspicious else "other"
                axes.barh(places, [at[y] for y in places], color=colour, label=label)
        for y, c in enumerate(bars):
            if math.isinf(c.score):
                axes.plot(
                    at[y], y, marker=">" if c.score > 0 else "<", color=INK, markersize=5, clip_on=False
                )
        if threshold is not None:
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
        axes.set_xlim(left, right)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks(range(len(bars)), [_tick(c) for c in bars])
        axes.set_xlabel("score")
        axes.set_ylabel("class")
        axes.grid(alpha=0.2, axis="x")
        axes.set_axisbelow(True)
        # Of the figure: beside the names there is no room for it over the axes alone.
        axes.figure.legend(loc="outside upper left", ncol=3, frameon=False, borderpad=0)
        return inline(axes.figure, f"Scores of the classes. {' '.join(singled_out(found))}")


def _tick(scored: Scored) -> str:
    if scored.name == str(scored.number) or not PLAIN.fullmatch(scored.name):
        return str(scored.number)
    name = scored.name if len(scored.name) <= SHORT else f"{scored.name[: SHORT - 1]}\N{HORIZONTAL ELLIPSIS}"
    return f"{scored.number} {name}"


def count(rows: Sequence[Stage]) -> int:
    """Return of how many classes the accuracy was measured."""
    return max((len(_accuracies(s)) for s in rows), default=0)


def per_class(rows: Sequence[Stage], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (class, accuracy per stage) in the order of the classes; of very many those that fell most."""
    columns = [_accuracies(s) for s in rows]
    lines = [[c[k] if k < len(c) else None for c in columns] for k in range(count(rows))]

    def fall(k: int) -> float:
        first, last = lines[k][0], lines[k][-1]
        return first - last if known(first) and known(last) else -math.inf

    kept = sorted(sorted(range(len(lines)), key=fall, reverse=True)[:LISTED])
    return [(named(k, names), [percent(v) for v in lines[k]]) for k in kept]


def _accuracies(stage: Stage) -> list[Any]:
    found = stage.result.get("per_class")
    return found if isinstance(found, list) else []
