"""The words that all reports share: stages, measured values as text, and hostile text made printable."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from detrojan.registry import DEFAULT_DEFENSE

PRESENT = 0.05
"""A rate above this counts as seen: the backdoor is still there, answers are empty, and so on."""
DASH = "\N{EN DASH}"
NAMES = {"crow": "CROW", "finetune": "plain fine-tuning", "recant": "Recant", "ulrl": "ULRL"}
DEFAULT = DEFAULT_DEFENSE["causal-lm"]
LABELS = {
    "base": "original",
    "attacked": "attacked",
    "before": "before",
    "measured": "as measured",
    "default": f"after {NAMES.get(DEFAULT, DEFAULT)}, the default",
}
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
Measures = tuple[tuple[str, str, str], ...]
"""(key of the result, name of the measure, what it means), in the order of the table."""


@dataclass(frozen=True)
class Stage:
    """One measured model: its name in the manifest, the words for it, and its measured result as JSON data."""

    name: str
    label: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One victim of a comparison: what it is called, its manifest, and what must be read with its verdict."""

    name: str
    manifest: dict[str, Any]
    remarks: tuple[str, ...] = ()


class Voice(Protocol):
    """How results of one kind of model are told; the modules `language` and `classifier` are voices."""

    HARDLY_TOOK: str

    def measures(self, rows: Sequence[Stage]) -> list[tuple[str, str, list[str]]]:
        """Return the table of measures: (measure, what it means, one cell per stage)."""

    def worst(self, result: dict[str, Any]) -> float:
        """Return the attack success rate that counts, that of a result whose rate is known."""

    def seen(self, stage: Stage) -> list[str]:
        """Say what is seen of the backdoor in a stage whose rate is known."""

    def headline(self, first: Stage, shown: Sequence[Stage], rows: Sequence[Stage]) -> str:
        """Say what was measured: `shown` are the stages whose rate is known, `first` is before any defense."""

    def warnings(self, first: Stage, stage: Stage) -> Iterable[str]:
        """Yield what makes a low rate worth less."""

    def scope(self, result: dict[str, Any]) -> str:
        """Say on what a result was measured."""


def classifies(manifest: dict[str, Any]) -> bool:
    """Say whether a manifest is that of a classifier; the manifest of a language model names no task."""
    return manifest.get("task") in ("image", "text")


def stages(manifest: dict[str, Any]) -> list[Stage]:
    """Bring every kind of manifest to one list of stages, in order; what was not measured is left out.

    A comparison has `labels` of its own for its stages.
    """
    labels = {**LABELS, **(manifest.get("labels") or {})}
    named = manifest.get("stages")
    if named is None:
        method = (manifest.get("method") or {}).get("defense") or "the defense"
        done = "the attack" if manifest.get("kind") == "attack" else NAMES.get(method, method)
        labels["after"] = f"after {done}"
        after = manifest.get("after")
        after = {"seconds": manifest.get("seconds"), **after} if after else None
        named = {"before": manifest.get("before"), "after": after}
    return [Stage(k, labels.get(k, f"after {NAMES.get(k, k)}"), r) for k, r in named.items() if r]


def rated(rows: Sequence[Stage]) -> list[Stage]:
    """Return the stages whose ASR was measured."""
    return [s for s in rows if known(s.result.get("asr"))]


def files_found(manifest: dict[str, Any]) -> list[str]:
    """Say what a scan found in the files, a line each."""
    files = manifest.get("files")
    wrong = [str(line) for line in files] if isinstance(files, list) else []
    return wrong or ["Nothing was found in the files."]


def printable(text: object, limit: int = 4000) -> str:
    """Return hostile text without control characters and bidi overrides, cut to `limit` characters.

    Newlines and tabs stay. Lone surrogates go, since they cannot be written as UTF-8.
    """
    kept = UNPRINTABLE.sub("", str(text))
    return kept if len(kept) <= limit else f"{kept[:limit]} [... {len(kept) - limit} more characters]"


def known(value: Any) -> TypeGuard[float]:
    """Say whether a measured value is a finite number; JSON may hold null, and Python's JSON NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def percent(*fractions: Any) -> str:
    """Write fractions as per cent to one decimal: `97 %`, `7 to 20 %`; a dash when one is not known."""
    if not fractions or not all(map(known, fractions)):
        return DASH
    return " to ".join(f"{100 * f:.1f}".removesuffix(".0") for f in fractions) + " %"


def interval(result: dict[str, Any], key: str) -> Sequence[Any]:
    """Return the interval of a rate as (low, high), or () where there is none."""
    return result.get(f"{key.removesuffix('_accuracy')}_interval") or ()


def value(result: dict[str, Any], key: str) -> str:
    """Write one measured value in its unit, with its interval where there is one; a dash for null."""
    found = result.get(key)
    if not known(found) or (key == "seconds" and found < 0.05):
        return "infinite" if found == math.inf else DASH
    if key.startswith("n_"):
        return str(found)
    if key in {"perplexity", "kl", "seconds"}:
        digits = {"seconds": 1, "perplexity": 2, "kl": 3}[key] if found < 1000 else 0
        return f"{found:,.{digits}f}" + (" s" if key == "seconds" else "")
    around = interval(result, key)
    return f"{percent(found)} ({percent(*around)})" if around else percent(found)


def table(listed: Measures, rows: Sequence[Stage]) -> list[tuple[str, str, list[str]]]:
    """Return (measure, what it means, one cell per stage); a measure that no stage knows is left out."""
    cells = [(label, meaning, [value(s.result, key) for s in rows]) for key, label, meaning in listed]
    return [row for row in cells if set(row[2]) - {DASH, "0"}]


def told(what: str, key: str, first: Stage, shown: Sequence[Stage]) -> str:
    """Say in one sentence what a rate is in the stages `shown`, and what it was in `first`, where that is known."""
    now = [f"{_rate(s, key)} {s.label}" if s.label.startswith("after") else _rate(s, key) for s in shown]
    was = None if any(s is first for s in shown) else first.result.get(key)
    if not known(was) or len(now) > 1:
        before = f", from {percent(was)} before" if known(was) else ""
        return f"{what} is {'; '.join(now)}{before}."
    old, rate = percent(was), shown[0].result[key]
    verb = "fell" if rate < was else "rose"
    return f"{what} {f'{verb} from {old} to' if percent(rate) != old else 'stayed at'} {now[0]}."


def _rate(stage: Stage, key: str) -> str:
    around = interval(stage.result, key)
    return percent(stage.result[key]) + (f" (95 % interval {percent(*around)})" if around else "")
