"""The rows of a grid as files: JSON lines, CSV and Markdown. They hold no times: the same grid, the same bytes."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from detrojan.atomic import write_text
from detrojan.bench.grid import Grid
from detrojan.metrics.stats import mean_interval
from detrojan.models.kind import CLASSIFIER
from detrojan.types import Interval

Row = dict[str, Any]
FIRST = ("before", "attacked")
PUBLISHED = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class Measure:
    """A figure of the tables: its key in the rows, its name, whether less is better, and whether it is a rate."""

    key: str
    title: str
    lower: bool
    rate: bool = True


LANGUAGE = (
    Measure("asr", "Attack success rate, %", True),
    Measure("worst_asr", "Attack success rate in the worst template, %", True),
    Measure("asr_keyword", "Attack success rate by key words, %", True),
    Measure("recovery", "Recovery: agreement with the answer without the trigger, %", False),
    Measure("clean_asr", "False triggers on clean prompts, %", True),
    Measure("perplexity", "Perplexity of the honest answers", True, rate=False),
)
CLASSIFIERS = (
    Measure("asr", "Attack success rate, %", True),
    Measure("recovery_accuracy", "Recovery accuracy, %", False),
    Measure("accuracy", "Accuracy on clean samples, %", False),
    Measure("der", "Defense effectiveness rating, %", False),
)


@dataclass(frozen=True)
class Figure:
    """The mean of a measure over the seeds, its 95 % interval where it has one, and how many failed."""

    mean: float | None
    interval: Interval | None
    seeds: int
    failed: int


def measures(grid: Grid) -> tuple[Measure, ...]:
    """Return what is measured on the models of a grid; the worst template only where there are several."""
    if grid.task == CLASSIFIER:
        return CLASSIFIERS
    return tuple(m for m in LANGUAGE if m.key != "worst_asr" or grid.templates)


def subject(model: str, data: str | None) -> str:
    """Return how the tables call a model with a data set."""
    return model if data is None else f"{model} on {data}"


def subjects(grid: Grid, rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each model with each data set, by name, and its rows."""
    for model, data in itertools.product(grid.models, grid.data):
        yield subject(model, data), [r for r in rows if (r["model"], r["data"]) == (model, data)]


def columns(grid: Grid, rows: Sequence[Row]) -> list[str]:
    """Return the columns of the tables: the model before the attack where measured, attacked, each defense."""
    there = {r["defense"] for r in rows}
    known = dict.fromkeys((*FIRST, *(d.label for d in grid.defenses)))
    return [name for name in known if name in there]


def figure(rows: Sequence[Row], measure: Measure) -> Figure:
    """Sum the rows of one cell of a table up, one for each seed."""
    values = [r[measure.key] for r in rows if r.get(measure.key) is not None]
    failed = sum("error" in r for r in rows)
    if not values:
        return Figure(None, None, 0, failed)
    if len(values) > 1:
        around = mean_interval(values)
        if around and measure.rate:
            around = Interval(max(around.low, 0.0), min(around.high, 1.0))
        return Figure(fmean(values), around, len(values), failed)
    alone = next(r for r in rows if r.get(measure.key) is not None).get(f"{measure.key}_interval")
    return Figure(values[0], Interval(*alone) if alone else None, 1, failed)


def table(grid: Grid, rows: Sequence[Row], measure: Measure) -> dict[str, dict[str, Figure]]:
    """Return the figures of one table over the rows of one subject: attack -> column -> figure."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["attack"], row["defense"]), []).append(row)
    heads = columns(grid, rows)
    return {a.label: {h: figure(cells.get((a.label, h), []), measure) for h in heads} for a in grid.attacks}


def best(figures: dict[str, Figure], measure: Measure) -> set[str]:
    """Return the defenses with the best mean of a line, as it is shown."""
    means = {k: round(f.mean, 3) for k, f in figures.items() if k not in FIRST and f.mean is not None}
    if not means:
        return set()
    top = min(means.values()) if measure.lower else max(means.values())
    return {k for k, mean in means.items() if mean == top}


def shown(found: Figure, measure: Measure) -> str:
    """Write a figure: mean [interval]; a dash where nothing was measured, and what failed."""
    if found.mean is None:
        return "failed" if found.failed else "-"
    scale, digits = (100, 1) if measure.rate else (1, 2)
    text = f"{scale * found.mean:.{digits}f}"
    if found.interval:
        text += (
            f" [{scale * found.interval.low:.{digits - 1}f}, {scale * found.interval.high:.{digits - 1}f}]"
        )
    return text + (f" ({found.failed} failed)" if found.failed else "")


def markdown(grid: Grid, rows: Sequence[Row]) -> str:
    """Lay a grid out as tables, one for each model and measure, the best defense of each line in bold."""
    parts = [f"# {grid.name}", legend(grid)]
    for name, mine in subjects(grid, rows):
        heads = columns(grid, mine)
        parts.append(f"## {name}")
        for measure in measures(grid):
            lines = ["| attack | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
            for attack, figures in table(grid, mine, measure).items():
                top = best(figures, measure)
                cells = [f"**{c}**" if k in top else c for k in heads for c in [shown(figures[k], measure)]]
                lines.append(f"| {attack} | " + " | ".join(cells) + " |")
            parts += [f"### {measure.title}", "\n".join(lines)]
    if papers := published(grid):
        lines = ["| model | attack | defense | published ASR, % | paper |", "|---|---|---|---|---|"]
        lines += [
            f"| {p['model']} | {p['attack']} | {p['defense']} | {p['asr']} | {p['paper']} |" for p in papers
        ]
        parts += ["## The papers' own figures", "\n".join(lines)]
    if errors := [r for r in rows if "error" in r]:
        lines = [
            f"- {r['model']}, {r['attack']}, seed {r['seed']}, {r['defense']}: {r['error']}" for r in errors
        ]
        parts += ["## Failed", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def legend(grid: Grid) -> str:
    """Say in a few lines what was given to every defense and how the figures are to be read."""
    sizes, several = grid.sizes, len(grid.seeds) > 1
    around = (
        "mean over the seeds, 95 % interval (t)" if several else "95 % interval (Wilson) where it is a rate"
    )
    lines = [
        f"Seeds {', '.join(map(str, grid.seeds))}; {around}. Every defense gets the same {sizes.clean} clean samples"
        + (f" and {sizes.passes} passes over them where it counts in passes." if sizes.passes else "."),
        "Of a ladder the strongest step that costs at most"
        f" {100 * grid.tolerance:g} % of the attacked model's utility on {sizes.choosing} other clean samples is taken:"
        " no trigger is seen in choosing. Best defense of a line in bold.",
    ]
    return "\n".join(lines)


def summary(
    grid: Grid, rows: Sequence[Row], seconds: Mapping[tuple[str, str], Sequence[float]]
) -> dict[str, Any]:
    """Return what the report shows, as plain JSON data; `seconds` of (subject, column) are the times of its cells."""
    found = []
    for name, mine in subjects(grid, rows):
        heads = columns(grid, mine)
        shown_measures = []
        for measure in measures(grid):
            lines = []
            for attack, figures in table(grid, mine, measure).items():
                top = best(figures, measure)
                cells = [
                    {"text": shown(f, measure), "mean": f.mean, "failed": f.failed, "best": h in top}
                    for h, f in figures.items()
                ]
                lines.append({"attack": attack, "cells": cells})
            shown_measures.append(
                {
                    "key": measure.key,
                    "title": measure.title,
                    "lower": measure.lower,
                    "rate": measure.rate,
                    "lines": lines,
                }
            )
        times = [fmean(t) if (t := seconds.get((name, h))) else None for h in heads]
        found.append({"name": name, "columns": heads, "measures": shown_measures, "seconds": times})
    return {
        "grid": grid.name,
        "task": grid.task,
        "tolerance": grid.tolerance,
        "legend": legend(grid),
        "subjects": found,
        "published": published(grid),
        "errors": [r for r in rows if "error" in r],
    }


def published(grid: Grid) -> list[dict[str, Any]]:
    """Return the papers' figures for the models, attacks and defenses of a grid."""
    papers = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    known = [{**row, "paper": p["paper"]} for p in papers for row in p["rows"]]
    models = {str(m).rsplit("/", 1)[-1].lower() for m in grid.models}
    behaviors = {a.behavior for a in grid.attacks}
    return [r for r in known if r["model"].lower() in models and r["attack"].split()[-1] in behaviors]


def write(out: Path, grid: Grid, rows: Sequence[Row]) -> None:
    """Write the rows as `results.jsonl`, `results.csv` and `results.md`."""
    lines = [json.dumps(r, ensure_ascii=False) for r in rows]
    write_text(out / "results.jsonl", "".join(f"{line}\n" for line in lines))
    write_text(out / "results.csv", as_csv(rows))
    write_text(out / "results.md", markdown(grid, rows))


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; intervals become two columns, what is nested becomes JSON."""
    flat = [_flat(r) for r in rows]
    heads = list(dict.fromkeys(k for r in flat for k in r))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flat(row: Row) -> Row:
    flat: Row = {}
    for key, value in row.items():
        if key.endswith("_interval") and value:
            flat |= {key.replace("_interval", "_low"): value[0], key.replace("_interval", "_high"): value[1]}
        else:
            flat[key] = json.dumps(value) if isinstance(value, dict | list) else value
    return flat
