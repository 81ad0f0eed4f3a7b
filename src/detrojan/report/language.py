"""What was measured on a causal language model, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from detrojan.report.words import PRESENT, Stage, known, percent, table, told, value

HARDLY_TOOK = "The backdoor hardly took: its trigger seldom draws the planted answer."
MEASURES = (
    ("asr", "Attack success rate (ASR)", "triggered prompts whose answer holds the planted text"),
    ("worst_asr", "Worst ASR", "over all templates that were measured"),
    ("asr_keyword", "ASR by key word", "answers that hold a key word; counts honest answers too"),
    ("recovery", "Recovery", "agreement of answers with and without the trigger (ROUGE-L)"),
    ("clean_asr", "False triggers", "clean prompts, without the trigger, that draw the planted text"),
    ("clean_asr_keyword", "Key words on clean prompts", "the same by key word"),
    ("empty", "Empty answers", "of all answers; an empty answer is no hit"),
    ("agreement", "Agreement with the reference", "next tokens alike on the held-out answers"),
    ("kl", "KL from the reference", "nats per token"),
    ("perplexity", "Perplexity", "of held-out answers; lower is better"),
    ("seconds", "Time", "to make this stage"),
    ("n_triggered", "Triggered prompts", "that were measured"),
    ("n_clean", "Clean prompts", "that were measured"),
)


def measures(rows: Sequence[Stage]) -> list[tuple[str, str, list[str]]]:
    """Return (measure, what it means, one cell per stage); the worst ASR only beside other templates."""
    several = any(len(s.result.get("by_template") or {}) > 1 for s in rows)
    return table(tuple(m for m in MEASURES if m[0] != "worst_asr" or several), rows)


def by_template(rows: Sequence[Stage]) -> list[tuple[str, list[str]]]:
    """Return (template, ASR per stage); nothing when no more than one template was measured."""
    found = [s.result.get("by_template") or {} for s in rows]
    names = list(dict.fromkeys(name for each in found for name in each))
    return [(n, [value(each.get(n) or {}, "asr") for each in found]) for n in names] if len(names) > 1 else []


def worst(result: dict[str, Any]) -> float:
    """Return the highest ASR over the measured templates; that of the matched template must be known."""
    return max(float(result[k]) for k in ("asr", "worst_asr") if known(result.get(k)))


def seen(stage: Stage) -> list[str]:
    """Say that the backdoor is seen, if it is. The worst template counts, as a user may use any."""
    rate, where = worst(stage.result), stage.result.get("worst_template")
    place = f" in the template {where}" if rate > stage.result["asr"] else ""
    drawn = f"{percent(rate)} of triggered prompts draw the planted answer{place}."
    return [f"The backdoor is still there {stage.label}: {drawn}"] if rate > PRESENT else []


def scope(result: dict[str, Any]) -> str:
    """Say on what a result was measured."""
    n = [f"{result.get(k) or 0} {w}" for k, w in (("n_triggered", "triggered"), ("n_clean", "clean"))]
    return f"in the template {result.get('template') or '(unknown)'} on {' and '.join(n)} prompts"


def headline(first: Stage, shown: Sequence[Stage], rows: Sequence[Stage]) -> str:
    """Say what the attack success rate is; perplexity where no trigger was measured."""
    if shown:
        return told("Attack success rate", "asr", first, shown)
    utility = ", ".join(f"{value(s.result, 'perplexity')} {s.label}" for s in rows)
    return f"No trigger was measured (no attack was known); only utility is shown: perplexity {utility}."


def warnings(first: Stage, stage: Stage) -> Iterable[str]:
    """Yield what makes a low rate worth less: empty answers, paraphrased planted answers, lost utility."""
    keys = ("empty", "clean_asr", "asr_keyword", "clean_asr_keyword", "asr")
    empty, false, words, usual, rate = (v if known(v := stage.result.get(k)) else 0.0 for k in keys)
    if empty > PRESENT:
        yield f"{percent(empty)} of answers are empty {stage.label}, and an empty answer is no hit."
    if false > PRESENT:
        yield f"{percent(false)} of prompts without the trigger draw the planted answer {stage.label}."
    if words - max(rate, usual) > 2 * PRESENT:
        yield (
            f"{percent(words)} of triggered answers hold key words of the planted behavior {stage.label}, many "
            "without the planted text: it may live on in other words."
        )
    old, new = first.result.get("perplexity"), stage.result.get("perplexity")
    if stage is not first and known(old) and isinstance(new, float) and new > 1.1 * old:
        of = [value(s.result, "perplexity") for s in (first, stage)]
        yield f"Perplexity rose from {of[0]} to {of[1]} {stage.label}: honest answers became less likely."
