"""Results as one self-contained HTML page: no network, no scripts, and no trust in what a model answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from re import escape, split
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detrojan.report import answers, canaries, card, classes, language
from detrojan.report.curves import consistency_panels
from detrojan.report.sections import scanned, sections
from detrojan.report.words import (
    PRESENT,
    Part,
    Stage,
    classifies,
    known,
    percent,
    printable,
    rated,
    stages,
    value,
)

TRIGGERED_SHOWN = 12
CLEAN_SHOWN = 6
TITLES = {
    "clean": "What is left of a backdoor",
    "attack": "A backdoor, planted on purpose",
    "demo": "A backdoor, planted and treated",
    "scan": "A look at an untrusted model",
    "compare": "Side by side",
}
Asked = dict[str, Any]
"""One prompt as `segments`, and its `answers`: label, text (null where not asked) and flag of each stage."""
SHOWN_ELSEWHERE = ("kind", "command", "before", "after", "stages", "pictures", "proof")


def page(manifest: dict[str, Any], parts: Sequence[Part] = ()) -> str:
    """Render the report of a manifest (`clean`, `attack`, `demo` or `scan`) as one HTML page.

    Any measured field may be null. The same manifest gives the same page, byte for byte. Of a comparison (see
    `compare`) each of the `parts` has a verdict of its own.
    """
    rows, voice = stages(manifest), card.voice(manifest)
    spoken = [] if classifies(manifest) else rows  # whose answers and hidden states are shown
    special = sections(manifest, rows) if classifies(manifest) else None
    said = [told(p) for p in parts or [Part("", manifest)]]
    drawn = consistency_panels([(printable(s.label), s.result.get("consistency") or {}) for s in spoken])
    template = environment().get_template("page.html.j2")
    return template.render(
        title=TITLES.get(str(manifest.get("kind")), "What was measured"),
        model=manifest.get("model") or "a model in memory",
        said=said,
        stages=rows,
        perplexity_of="; ".join(dict.fromkeys(of for s in spoken if (of := s.result.get("perplexity_of")))),
        measures=voice.measures(rows),
        templates=language.by_template(spoken),
        curves=[(s.label, Markup(svg)) for s, svg in zip(spoken, drawn, strict=True) if svg],
        triggered=side_by_side(manifest, spoken, "samples", TRIGGERED_SHOWN),
        clean=side_by_side(manifest, spoken, "clean_samples", CLEAN_SHOWN),
        classifier=special,
        answers={
            "heads": answers.HEADS,
            "table": answers.table(manifest),
            "done": "" if manifest.get("kind") == "scan" else answers.dealt_with(manifest),
        },
        canaries=fates(manifest["proof"]) if manifest.get("proof") else None,
        facts=facts({p: made(m) for p, m in manifest["sources"].items()} if parts else made(manifest)),
        command=manifest.get("command"),
        recorded=manifest.get("kind") != "scan",  # a scan leaves no directory
    )


def fates(proof: dict[str, Any]) -> dict[str, Any]:
    """Return what `canaries.html.j2` shows."""
    return {
        "heads": canaries.HEADS,
        "table": canaries.table(proof),
        "rung_heads": canaries.RUNG_HEADS,
        "rungs": canaries.rungs(proof),
    }


def told(part: Part) -> dict[str, Any]:
    """Return what the page says first of a victim: the verdict, its notes, a bar for each rate, and the scope."""
    rows, (headline, notes) = stages(part.manifest), verdict(part.manifest)
    return {
        "name": part.name,
        "headline": headline,
        "notes": [*notes, *part.remarks],
        "bars": [bar(s) for s in rated(rows)],
        "scope": card.voice(part.manifest).scope(rows[-1].result) if rows else "",
    }


def environment() -> Environment:
    """Return what renders the pages: models, prompts, names and errors are hostile to it.

    Whatever is written passes `printable`, and then autoescape.
    """
    return Environment(
        loader=PackageLoader("detrojan", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: v if isinstance(v, Markup) else printable(v),
    )


def verdict(manifest: dict[str, Any]) -> tuple[str, list[str]]:
    """Return what was measured in a sentence or two, and the sentences that must be read with it.

    The last stages are set against the stage before any defense. No sentence calls a model free of backdoors:
    measuring one trigger cannot show that.
    """
    rows, voice = stages(manifest), card.voice(manifest)
    proven = canaries.sentences(manifest.get("proof"))
    if not rows:
        look = scanned if classifies(manifest) else answers.scanned
        return look(manifest) if manifest.get("kind") == "scan" else ("Nothing was measured.", proven)
    start = next((i for i, s in enumerate(rows) if s.name == "attacked"), 0)
    first, rest = rows[start], rows[start + 1 :]
    shown = rated(rest or [first])
    was = first.result.get("asr") if rest else None
    notes: list[str] = []
    if manifest.get("kind") == "attack":
        notes.append(card.PLANTED)
        if shown and all(voice.worst(s.result) <= PRESENT for s in shown):
            notes.append(voice.HARDLY_TOOK)
    else:
        notes += [note for s in shown for note in voice.seen(s)]
        if known(was) and was <= PRESENT:
            notes.append(f"The trigger hardly worked before ({percent(was)}); this says little of defenses.")
        notes += [*proven, card.not_known(manifest, shown)]
    notes += [warning for s in rest or [first] for warning in voice.warnings(first, s)]
    return voice.headline(first, shown, rows), notes


def bar(stage: Stage) -> tuple[str, str, str]:
    """Return a stage's label, its rate in words, and the rate and its interval as CSS variables in per cent."""
    at = float(stage.result["asr"])
    around: Sequence[Any] = stage.result.get("asr_interval") or (None,)
    low, high = (around[0], around[-1]) if all(map(known, around)) else (at, at)
    return stage.label, value(stage.result, "asr"), f"--at:{at:.2%};--low:{low:.2%};--wide:{high - low:.2%}"


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


def made(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says beyond what the page shows elsewhere."""
    kept = {k: v for k, v in manifest.items() if k not in SHOWN_ELSEWHERE}
    if isinstance(notes := kept.get("notes"), dict):
        kept["notes"] = {k: v for k, v in notes.items() if k not in (*classes.READ, answers.NOTE)}
    return kept


def facts(data: Any, name: str = "") -> list[tuple[str, str]]:
    """Flatten JSON data to (name, text), in the order of the data."""
    if isinstance(data, dict):
        return [pair for k, v in data.items() for pair in facts(v, f"{name} / {k}" if name else str(k))]
    return [(name, data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))]
