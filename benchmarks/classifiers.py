"""What the benchmarks of classifiers share: the defenses, one cell measured after the other, and the table.

A cell is a backdoor and a seed in a setting: the architecture, how many samples trained it, how many clean ones a
defense has. The training samples are drawn first, so that all amounts of clean samples start from the same model. It is
kept on the disk beside the rows. Every finished row is appended to `results.jsonl`; a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rows import append, read_rows

from detrojan import manifest, registry
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.attacks.text.labels import TextTrigger
from detrojan.classification import read_trigger
from detrojan.data.stratified import sample, take
from detrojan.metrics.classification import measure_classifier
from detrojan.models.classifier import load_classifier
from detrojan.models.save import save_classifier
from detrojan.types import Classifier, Labelled, Probe, Rows, Run

NONE = "none"
CLEAN = "clean model"
"""The column of a model without a backdoor, shown the trigger: what is left below that is no backdoor."""
AnyTrigger = ImageTrigger | TextTrigger
Planted = tuple[Classifier, AnyTrigger | None]
Kept = tuple[Classifier, AnyTrigger | None, float]
"""A model from the disk, its trigger, and the seconds that making it took."""
PLANTED = 0.5
"""Attack success from which on a backdoor counts as planted."""
TARGET = 0
"""The class that all these backdoors draw."""
Column = tuple[str, str, dict[str, Any]]
"""Defense, preset, and the options that differ from it."""
COLUMNS: dict[str, Column] = {
    "finetune": ("finetune", "default", {}),
    "ulrl paper": ("ulrl", "paper-cifar10", {}),
    "ulrl default": ("ulrl", "default", {}),
}
SETTING = ("architecture", "training", "clean")
"""What a row was measured in, besides its attack, seed and column."""
FIRST = 1
"""The planting of a row that names none; published rows of models that were planted anew name theirs."""


@dataclass(frozen=True)
class Bench:
    """What the cells of one seed share."""

    architecture: str
    training: int
    """Samples that the models are trained on."""
    clean: Rows
    held_out: Rows
    seed: int
    out: Path
    plant: Callable[..., Planted]
    """Train a model with the backdoor of this name; `none` is a clean one."""
    probe: Callable[[Classifier, AnyTrigger], Probe]

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def setting(self) -> tuple[Any, ...]:
        return self.architecture, self.training, len(self.clean)


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return the flags that all benchmarks of classifiers have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", help="a source that detrojan takes")
    made.add_argument("--train", type=int, help="training samples of a model")
    made.add_argument("--clean", type=int, default=600, help="clean samples of a defense")
    made.add_argument("--epochs", type=int)
    made.add_argument("--learning-rate", type=float)
    made.add_argument("--batch-size", type=int, help="of the training of a model")
    made.add_argument("--attacks", nargs="*", help="by default all")
    made.add_argument("--out", type=Path)
    made.add_argument("--table", action="store_true", help="only print the table")
    made.set_defaults(**defaults)
    return made


def training_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {k: getattr(arguments, k) for k in ("epochs", "learning_rate", "batch_size")}


def parts(data: Labelled, training: int, clean: int, seed: int) -> tuple[Labelled, Labelled]:
    """Draw training samples (fewer where the data is small) and, from the others, clean ones."""
    used, rest = sample(data, min(training, len(data) - clean), seed)
    others = take(data, rest)
    return take(data, used), take(others, sample(others, clean, seed)[0])


def measure(
    arguments: argparse.Namespace,
    prepare: Callable[[argparse.Namespace, int], Bench],
    names: list[str],
    columns: dict[str, Column],
) -> None:
    """Measure what is not in the results yet, and write and print the table."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for seed in arguments.seeds:
            bench = prepare(arguments, seed)
            for name in arguments.attacks or names:
                run_cell(bench, name, columns)
    table = markdown(read_rows(arguments.out / "results.jsonl"))
    (arguments.out / "results.md").write_text(table, encoding="utf-8")
    print(table)


def run_cell(bench: Bench, name: str, columns: dict[str, Column]) -> None:
    """Measure every column of a cell that is not in the results yet."""
    rows = [r for r in read_rows(bench.results) if (r["attack"], r["seed"]) == (name, bench.seed)]
    done = {r["column"] for r in rows if setting(r) == (*bench.setting, FIRST)}
    if done >= {"attacked", *columns} | ({CLEAN} if name != NONE else set()):
        return
    victim, trigger, seconds = attacked(bench, name)
    if "attacked" not in done:
        report(bench, name, "attacked", victim, trigger, seconds, {})
    if name != NONE and CLEAN not in done:
        unharmed, _, seconds = attacked(bench, NONE)
        report(bench, name, CLEAN, unharmed, trigger, seconds, {})
    for column, (defense, preset, values) in columns.items():
        if column not in done:
            entry = registry.find("defense", defense, "classifier")
            notes: dict[str, Any] = {}
            run = Run(seed=bench.seed, note=notes.__setitem__)
            started = time.monotonic()
            cleaned = entry.value(own(victim), bench.clean, entry.make_options(values, preset), run)
            report(bench, name, column, cleaned, trigger, time.monotonic() - started, notes)


def attacked(bench: Bench, name: str) -> Kept:
    """Return the model with its backdoor, its trigger, and the seconds that planting took."""
    model = "-".join((bench.architecture.replace("/", "-"), str(bench.training), name, str(bench.seed)))
    return kept(bench.out / "models" / model, lambda: bench.plant(name))


def kept(where: Path, make: Callable[[], Planted]) -> Kept:
    """Read a model from the disk, where it is made and written first unless it is there."""
    if not (where / manifest.NAME).is_file():
        started = time.monotonic()
        model, trigger = make()
        seconds = time.monotonic() - started
        where.mkdir(parents=True, exist_ok=True)
        save_classifier(model, where)
        if isinstance(trigger, ImageTrigger):
            trigger.save(where)
        about = {"kind": "attack", **trigger.to_json()} if trigger else {"kind": "train"}
        record = {"command": "benchmarks", "task": model.task, "seconds": seconds, **about}
        manifest.write(where, record)
    record, model = manifest.read(where), load_classifier(where)
    known = read_trigger(where, model.task) if record["kind"] == "attack" else None
    return model, known, record["seconds"]


def report(
    bench: Bench,
    name: str,
    column: str,
    model: Classifier,
    trigger: AnyTrigger | None,
    seconds: float,
    notes: dict[str, Any],
) -> None:
    result = measure_classifier(model, bench.held_out, bench.probe(model, trigger) if trigger else None)
    row = {
        "attack": name,
        "seed": bench.seed,
        "column": column,
        **dict(zip(SETTING, bench.setting, strict=True)),
        "accuracy": round(result.accuracy, 4),
        "asr": None if result.asr is None else round(result.asr, 4),
        "recovery_accuracy": None if result.recovery_accuracy is None else round(result.recovery_accuracy, 4),
        "n_clean": result.n_clean,
        "n_triggered": result.n_triggered,
        "seconds": round(seconds, 1),
        "suspicious": notes.get("suspicious"),
        "hinted": notes.get("hinted"),
        "scores": [round(min(s, 1e6), 2) for s in notes.get("scores", [])],
        "versions": manifest.versions()["torch"],
        "threads": torch.get_num_threads(),
    }
    append(bench.results, row)
    print(row, flush=True)


def own(classifier: Classifier) -> Classifier:
    return classifier.replace(model=copy.deepcopy(classifier.model))


def setting(row: dict[str, Any]) -> tuple[Any, ...]:
    return *(row[k] for k in SETTING), row.get("planting", FIRST)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out, a table for each setting: what each column measured, means over the seeds."""
    tables = [
        _table(which, [r for r in rows if setting(r) == which]) for which in dict.fromkeys(map(setting, rows))
    ]
    legend = "Each cell: accuracy / ASR / recovery accuracy in %, mean over the seeds, and seconds."
    return "\n\n".join([*tables, legend]) + "\n"


def summary(rows: list[dict[str, Any]], name: str) -> str:
    """Lay out, for each setting, what the columns did to the backdoors that were planted: means of the seeds."""
    lines = [
        f"| {name}: mean of the seeds [lowest, highest] | ASR % | highest ASR % | accuracy lost, points |"
        " recovery accuracy % | target found, no other | clean model loses, points |",
        "|---" * 7 + "|",
    ]
    for which in dict.fromkeys(map(setting, rows)):
        mine = [r for r in rows if setting(r) == which]
        before = {(r["attack"], r["seed"]): r for r in mine if r["column"] == "attacked"}
        for column in (c for c in dict.fromkeys(r["column"] for r in mine) if c != "attacked"):
            cells = [r for r in mine if r["column"] == column]
            there = [r for r in cells if (before[r["attack"], r["seed"]]["asr"] or 0) >= PLANTED]
            spared = [r for r in cells if r["attack"] == NONE]
            if there:
                count = f"{len(there)} backdoor{'s' if len(there) > 1 else ''}"
                made = f"{which[0]} of {which[1]:,} samples{_again(which[3])}"
                label = f"{column}, {made}, {which[2]} clean ones, {count}"
                lines.append(f"| {label} | " + " | ".join(_effect(there, spared, before)) + " |")
    return "\n".join(lines)


def _effect(
    there: list[dict[str, Any]], spared: list[dict[str, Any]], before: dict[tuple[str, int], dict[str, Any]]
) -> list[str]:
    def lost(row: dict[str, Any]) -> float:
        return float(before[row["attack"], row["seed"]]["accuracy"] - row["accuracy"])

    def seeds(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
        means = [
            100 * mean(value(r) for r in rows if r["seed"] == s) for s in sorted({r["seed"] for r in rows})
        ]
        return f"{mean(means):.1f} [{min(means):.1f}, {max(means):.1f}]"

    harmless = not any(r["attack"] == NONE for r in spared)  # of a model that was never attacked
    located = any(r["suspicious"] is not None for r in there)
    hits = sum(r["suspicious"] == [TARGET] for r in there)
    return [
        seeds(there, lambda r: r["asr"]),
        f"{100 * max(r['asr'] for r in there):.1f}",
        "-" if harmless else seeds(there, lost),
        seeds(there, lambda r: r["recovery_accuracy"]),
        f"{hits} of {len(there)}" if located else "-",
        "-" if harmless else seeds(spared, lost),
    ]


def _table(which: tuple[Any, ...], rows: list[dict[str, Any]]) -> str:
    architecture, training, clean, planting = which
    heads = list(dict.fromkeys(r["column"] for r in rows))
    lines = [
        f"{architecture}, {training} training samples{_again(planting)},"
        f" {clean} clean samples ({100 * clean / training:.2g} %):",
        "",
        "| attack | seeds | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name in dict.fromkeys(r["attack"] for r in rows):
        mine = [r for r in rows if r["attack"] == name]
        shown = " | ".join(_cell([r for r in mine if r["column"] == h]) for h in heads)
        lines.append(f"| {name} | {len({r['seed'] for r in mine})} | {shown} |")
    return "\n".join(lines)


def _again(planting: int) -> str:
    return "" if planting == FIRST else " (planted again)"


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    keys = [k for k in ("accuracy", "asr", "recovery_accuracy") if rows[0][k] is not None]
    figures = " / ".join(f"{100 * mean(r[k] for r in rows):.1f}" for k in keys)
    return f"{figures} ({mean(r['seconds'] for r in rows):.0f} s)"
