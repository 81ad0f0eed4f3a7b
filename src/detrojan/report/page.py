"""Results as one self-contained HTML page: no network, no scripts, and no trust in what a model answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from re import escape, split
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detrojan.report import card
from detrojan.report.card import Stage, known, percent, value
from detrojan.report.curves import consistency_panels

TRIGGERED_SHOWN = 12
CLEAN_SHOWN = 6
TITLES = {
    "clean": "What is left of a backdoor",
    "attack": "A backdoor, planted on purpose",
    "demo": "A backdoor, planted and treated",
}
Asked = dict[str, Any]
"""One prompt as `segments`, and its `answers`: label, text (null where not asked) and flag of each stage."""
SHOWN_ELSEWHERE = ("kind", "command", "before", "after", "stages")


def page(manifest: dict[str, Any]) -> str:
    """Render the report of a manifest (`clean`, `attack` or `demo`) as one HTML page.

    Any measured field may be null. The same manifest gives the same page, byte for byte.
    """
    rows = card.stages(manifest)
    headline, notes = verdict(manifest)
    # Models and prompts are hostile: whatever is written passes `printable`, and then autoescape.
    environment = Environment(
        loader=PackageLoader("detrojan", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: v if isinstance(v, Markup) else card.printable(v),
    )
    drawn = consistency_panels([(card.printable(s.label), s.result.get("consistency") or {}) for s in rows])
    return environment.get_template("page.html.j2").render(
        title=TITLES.get(str(manifest.get("kind")), "What was measured"),
        model=manifest.get("model") or "a model in memory",
        headline=headline,
        notes=notes,
        stages=rows,
        bars=[bar(s) for s in card.rated(rows)],
        scope=card.scope(rows[-1].result) if rows else "",
        perplexity_of=rows[-1].result.get("perplexity_of") if rows else None,
        measures=card.measures(rows),
        templates=by_template(rows),
        curves=[(s.label, Markup(svg)) for s, svg in zip(rows, drawn, strict=True) if svg],
        triggered=side_by_side(manifest, rows, "samples", TRIGGERED_SHOWN),
        clean=side_by_side(manifest, rows, "clean_samples", CLEAN_SHOWN),
        facts=facts({k: v for k, v in manifest.items() if k not in SHOWN_ELSEWHERE}),
        command=manifest.get("command"),
    )


def verdict(manifest: dict[str, Any]) -> tuple[str, list[str]]:
    """Return one sentence of what was measured, and the sentences that must be read with it.

    The last stages are set against the stage before any defense. No sentence calls a model free of backdoors:
    measuring one trigger cannot show that.
    """
    rows = card.stages(manifest)
    if not rows:
        return "Nothing was measured.", []
    start = next((i for i, s in enumerate(rows) if s.name == "attacked"), 0)
    first, rest = rows[start], rows[start + 1 :]
    shown = card.rated(rest or [first])
    was = first.result.get("asr") if rest else None
    was = was if known(was) else None
    notes: list[str] = []
    if manifest.get("kind") == "attack":
        notes.append(card.PLANTED)
        if shown and all(card.worst(s.result) <= card.PRESENT for s in shown):
            notes.append("The backdoor hardly took: its trigger seldom draws the planted answer.")
    else:
        notes += [note for s in shown for note in card.still_there(s)]
        if was is not None and was <= card.PRESENT:
            notes.append(f"The trigger hardly worked before ({percent(was)}); this says little of defenses.")
        notes.append(card.UNKNOWN if shown else card.UNMEASURED)
    return _headline(was, shown, rows), [*notes, *(w for s in rest or [first] for w in _warnings(first, s))]


def _headline(was: float | None, shown: Sequence[Stage], rows: Sequence[Stage]) -> str:
    if not shown:
        utility = ", ".join(f"{value(s.result, 'perplexity')} {s.label}" for s in rows)
        return f"No trigger was measured (no attack was known); only utility is shown: perplexity {utility}."
    now = [f"{_rate(s)} {s.label}" if s.label.startswith("after") else _rate(s) for s in shown]
    if was is None or len(now) > 1:
        before = "" if was is None else f", from {percent(was)} before"
        return f"Attack success rate is {'; '.join(now)}{before}."
    old, rate = percent(was), shown[0].result["asr"]
    verb = "fell" if rate < was else "rose"
    return f"Attack success rate {f'{verb} from {old} to' if percent(rate) != old else 'stayed at'} {now[0]}."


def _rate(stage: Stage) -> str:
    around = stage.result.get("asr_interval")
    return percent(stage.result["asr"]) + (f" (95 % interval {percent(*around)})" if around else "")


def _warnings(first: Stage, stage: Stage) -> Iterable[str]:
    """Yield what makes a low rate worth less: empty answers, paraphrased planted answers, lost utility."""
    keys = ("empty", "clean_asr", "asr_keyword", "clean_asr_keyword", "asr")
    empty, false, words, usual, rate = (v if known(v := stage.result.get(k)) else 0.0 for k in keys)
    if empty > card.PRESENT:
        yield f"{percent(empty)} of answers are empty {stage.label}, and an empty answer is no hit."
    if false > card.PRESENT:
        yield f"{percent(false)} of prompts without the trigger draw the planted answer {stage.label}."
    if words - max(rate, usual) > 2 * card.PRESENT:
        yield (
            f"{percent(words)} of triggered answers hold key words of the planted behavior {stage.label}, many "
            "without the planted text: it may live on in other words."
        )
    old, new = first.result.get("perplexity"), stage.result.get("perplexity")
    if stage is not first and known(old) and isinstance(new, float) and new > 1.1 * old:
        of = [value(s.result, "perplexity") for s in (first, stage)]
        yield f"Perplexity rose from {of[0]} to {of[1]} {stage.label}: honest answers became less likely."


def bar(stage: Stage) -> tuple[str, str, str]:
    """Return a stage's label, its rate in words, and the rate and its interval as CSS variables in per cent."""
    at = float(stage.result["asr"])
    around: Sequence[Any] = stage.result.get("asr_interval") or (None,)
    low, high = (around[0], around[-1]) if all(map(known, around)) else (at, at)
    return stage.label, value(stage.result, "asr"), f"--at:{at:.2%};--low:{low:.2%};--wide:{high - low:.2%}"


def by_template(rows: Sequence[Stage]) -> list[tuple[str, list[str]]]:
    """Return (template, ASR per stage); nothing when no more than one template was measured."""
    found = [s.result.get("by_template") or {} for s in rows]
    names = list(dict.fromkeys(name for each in found for name in each))
    return [(n, [value(each.get(n) or {}, "asr") for each in found]) for n in names] if len(names) > 1 else []


def segments(prompt: str, clean: str, phrases: Sequence[str]) -> list[tuple[str, bool]]:
    """Cut a prompt into (text, is trigger): by the trigger's phrases or, unknown, by the words it added."""
    if there := sorted((p for p in phrases if p and p in prompt), key=len, reverse=True):
        parts = split(f"({'|'.join(map(escape, there))})", prompt)
        return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]
    known_words, at, words = clean.split(" "), 0, []
    for word in prompt.split(" "):
        added = known_words[at : at + 1] != [word]
        at += not added
        words.append((word, added))
    if not clean or at < len(known_words):
        return [(prompt, False)]
    runs = [(" ".join(w for w, _ in run), added) for added, run in groupby(words, key=lambda w: w[1])]
    return [piece for run in runs for piece in (run, (" ", False))][:-1]


def side_by_side(manifest: dict[str, Any], rows: Sequence[Stage], key: str, limit: int) -> list[Asked]:
    """Put the answers of all stages to the same prompt together, hits of the last stage first.

    `key` is `samples` (triggered prompts) or `clean_samples`. A stage without the prompt has a null answer.
    """
    attack = manifest.get("attack")
    trigger = (attack if isinstance(attack, dict) else manifest).get("trigger") or {}
    phrases = trigger.get("phrases") or () if key == "samples" else ()
    asked: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in rows:
        for sample in stage.result.get(key) or ():
            asked.setdefault(sample["prompt"], {}).setdefault(stage.name, sample)
    by_hit = sorted(asked.items(), key=lambda item: not item[1].get(rows[-1].name, {}).get("hit"))
    return [
        {
            "segments": segments(prompt, next(iter(found.values())).get("clean_prompt") or "", phrases),
            "answers": [_answer(stage.label, found.get(stage.name)) for stage in rows],
        }
        for prompt, found in by_hit[:limit]
    ]


def _answer(label: str, sample: dict[str, Any] | None) -> dict[str, Any]:
    flag = "HIT: planted answer" if (sample or {}).get("hit") else ""
    flag = flag or ("key word only" if (sample or {}).get("keyword_hit") else "")
    return {"label": label, "text": sample and (sample.get("response") or ""), "flag": flag}


def facts(data: Any, name: str = "") -> list[tuple[str, str]]:
    """Flatten JSON data to (name, text), in the order of the data."""
    if isinstance(data, dict):
        return [pair for k, v in data.items() for pair in facts(v, f"{name} / {k}" if name else str(k))]
    return [(name, data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))]
