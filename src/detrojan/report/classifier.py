"""What was measured on a classifier of images or texts, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from detrojan.report.words import PRESENT, Stage, known, percent, table, told

HARDLY_TOOK = "The backdoor hardly took: triggered samples are seldom classified as the target."
LOST = 0.02
"""A fall of accuracy by more than this is warned of."""
MEASURES = (
    ("accuracy", "Accuracy", "samples without the trigger that are classified right"),
    ("asr", "Attack success rate (ASR)", "triggered samples that are classified as the target"),
    ("recovery_accuracy", "Recovery accuracy", "triggered samples that are classified as their own class"),
    (
        "der",
        "Defense effectiveness (DER)",
        "what ASR fell, less what accuracy fell: 50 % is no effect, 100 % the best",
    ),
    ("seconds", "Time", "to make this stage"),
    ("n_triggered", "Triggered samples", "that were measured; none is of the class that its trigger draws"),
    ("n_clean", "Clean samples", "that were measured"),
)


def measures(rows: Sequence[Stage]) -> list[tuple[str, str, list[str]]]:
    """Return (measure, what it means, one cell per stage)."""
    return table(MEASURES, rows)


def worst(result: dict[str, Any]) -> float:
    """Return the ASR, which must be known: a classifier has but one."""
    return float(result["asr"])


def seen(stage: Stage) -> list[str]:
    """Say as what triggered samples are classified, and that the backdoor is still there, if it is."""
    rate, recovered = worst(stage.result), stage.result.get("recovery_accuracy")
    own = f", {percent(recovered)} as their own class" if known(recovered) else ""
    drawn = f"{percent(rate)} of triggered samples are classified as the target"
    if rate > PRESENT:
        return [f"The backdoor is still there {stage.label}: {drawn}{own}."]
    return [f"{drawn} {stage.label}{own}."]


def scope(result: dict[str, Any]) -> str:
    """Say on what a result was measured."""
    n = [f"{result.get(k) or 0} {w}" for k, w in (("n_triggered", "triggered"), ("n_clean", "clean"))]
    return f"on {' and '.join(n)} samples"


def headline(first: Stage, shown: Sequence[Stage], rows: Sequence[Stage]) -> str:
    """Say what the attack success rate is, where a trigger was measured, and what became of accuracy."""
    if not shown:
        accuracy = ", ".join(f"{percent(s.result.get('accuracy'))} {s.label}" for s in rows)
        return f"No trigger was measured (no attack was known); only accuracy is shown: {accuracy}."
    sentences = [told("Attack success rate", "asr", first, shown)]
    if all(known(s.result.get("accuracy")) for s in shown):
        sentences.append(told("Accuracy", "accuracy", first, shown))
    return " ".join(sentences)


def warnings(first: Stage, stage: Stage) -> Iterable[str]:
    """Yield what makes a low rate worth less: lost accuracy, triggered samples that are still classified wrong."""
    old, new = first.result.get("accuracy"), stage.result.get("accuracy")
    # Rounded, so that a fall by 2 points on the dot is not one by more.
    if known(old) and known(new) and round(old - new, 6) > LOST:
        points = f"{100 * (old - new):.1f}".removesuffix(".0")
        yield (
            f"Accuracy fell by {points} points {stage.label}: samples without the trigger are classified worse."
        )
    rate, recovered = stage.result.get("asr"), stage.result.get("recovery_accuracy")
    # Above a half, samples that are drawn to the target explain a low recovery.
    if known(rate) and rate <= 0.5 and known(recovered) and known(new) and recovered < new / 2:
        yield (
            f"Only {percent(recovered)} of triggered samples are classified right {stage.label}, against "
            f"{percent(new)} without the trigger: where it does not draw its target, it still misleads the model."
        )
