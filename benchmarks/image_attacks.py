"""Image backdoors and what removes them: twelve attacks x defenses x seeds on one data set.

    python benchmarks/image_attacks.py --data FASHION_MNIST_IDX_FOLDER --out runs/image

Each cell plants one backdoor into a classifier that is trained from nothing, and starts every column from that same
model: plain fine-tuning, ULRL as published, ULRL at its default. `none` is a clean model, treated all the same. Clean
samples of the defenses are not among the training images. Every finished row is appended to `results.jsonl`; a run
that was stopped goes on where it was. `--table` only prints the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rows import append, read_rows

from detrojan import manifest, registry
from detrojan.attacks.image.plant import PlantOptions, Victim
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.data.labelled import read_labelled
from detrojan.data.stratified import sample, take
from detrojan.fitting import fit
from detrojan.metrics.classification import measure_classifier
from detrojan.models.classifier import load_classifier, to_rows
from detrojan.models.save import save_classifier
from detrojan.models.zoo import new_classifier
from detrojan.types import Classifier, Rows, Run

NONE = "none"
CLEAN_LABEL_RATE = 0.05
"""Half of a class of ten: a clean-label attack that takes all of it leaves none to learn from."""
Column = tuple[str, str, dict[str, Any]]
"""Defense, preset, and the options that differ from it."""
COLUMNS: dict[str, Column] = {
    "finetune": ("finetune", "default", {}),
    "ulrl paper": ("ulrl", "paper-cifar10", {}),
    "ulrl default": ("ulrl", "default", {}),
}
ABLATION: dict[str, Column] = {
    "no push in pixels": ("ulrl", "default", {"push": 0.0}),
    "no push in place": ("ulrl", "default", {"shift": 0.0}),
    "no push": ("ulrl", "default", {"push": 0.0, "shift": 0.0}),
    "no distilling": ("ulrl", "default", {"distil": 0.0}),
    "located by unlearning": ("ulrl", "default", {"locate": "unlearn"}),
    "located by margin": ("ulrl", "default", {"locate": "margin"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="an IDX folder, or a name that detrojan takes")
    parser.add_argument("--architecture", default="preact-resnet8")
    parser.add_argument("--train", type=int, default=20_000, help="training images")
    parser.add_argument("--clean", type=int, default=600, help="clean images of a defense")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--attacks", nargs="*", help="by default all, and none")
    parser.add_argument("--ablation", action="store_true", help="ULRL without each of its departures too")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/image"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        names = arguments.attacks or [NONE, *(e.name for e in registry.entries("trigger", "image"))]
        for seed in arguments.seeds:
            bench = prepare(arguments, seed)
            for name in names:
                run_cell(bench, name)
    table = markdown(read_rows(arguments.out / "results.jsonl"))
    (arguments.out / "results.md").write_text(table, encoding="utf-8")
    print(table)


@dataclass(frozen=True)
class Bench:
    """What the cells of one seed share."""

    base: Classifier
    training: Rows
    clean: Rows
    held_out: Rows
    options: dict[str, Any]
    seed: int
    out: Path
    columns: dict[str, Column]

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"


def prepare(arguments: argparse.Namespace, seed: int) -> Bench:
    whole = read_labelled(arguments.data, "image", split="train")
    test = read_labelled(arguments.data, "image", split="test")
    kept, rest = sample(whole, arguments.clean, seed)
    others = take(whole, rest)
    used, _ = sample(others, min(arguments.train, len(others)), seed)
    names = whole.names or tuple(map(str, range(int(whole.labels.max()) + 1)))
    fresh = new_classifier(arguments.architecture, names, tuple(whole.inputs.shape[1:]), seed=seed)
    base = load_classifier(fresh)
    options = {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
    training, clean = to_rows(base, take(others, used)), to_rows(base, take(whole, kept))
    columns = COLUMNS | (ABLATION if getattr(arguments, "ablation", False) else {})
    return Bench(base, training, clean, to_rows(base, test), options, seed, arguments.out, columns)


def run_cell(bench: Bench, name: str) -> None:
    """Measure every column of a cell that is not in the results yet; the planted model is kept on the disk."""
    done = {r["column"] for r in read_rows(bench.results) if (r["attack"], r["seed"]) == (name, bench.seed)}
    if done >= {"attacked", *bench.columns}:
        return
    where = bench.out / "models" / f"{name}-{bench.seed}"
    if "attacked" in done and (where / "model.safetensors").is_file():
        victim = load_classifier(where)
        record = json.loads((where / "attack.json").read_text(encoding="utf-8"))
        trigger = ImageTrigger.read(record, where) if record else None
    else:
        started = time.monotonic()
        victim, trigger = planted(bench, name)
        seconds = time.monotonic() - started
        where.mkdir(parents=True, exist_ok=True)
        save_classifier(victim, where)
        if trigger:
            trigger.save(where)
        (where / "attack.json").write_text(json.dumps(trigger and trigger.to_json()), encoding="utf-8")
        report(bench, name, "attacked", victim, trigger, seconds, {})
    for column, (defense, preset, values) in bench.columns.items():
        if column not in done:
            entry = registry.find("defense", defense, "classifier")
            notes: dict[str, Any] = {}
            run = Run(seed=bench.seed, note=notes.__setitem__)
            started = time.monotonic()
            cleaned = entry.value(own(victim), bench.clean, entry.make_options(values, preset), run)
            report(bench, name, column, cleaned, trigger, time.monotonic() - started, notes)


def planted(bench: Bench, name: str) -> tuple[Classifier, ImageTrigger | None]:
    victim, run = own(bench.base), Run(seed=bench.seed)
    if name == NONE:
        return fit(victim, bench.training, run, **bench.options), None
    entry = registry.find("trigger", name, "image")
    rate = {"poison_rate": CLEAN_LABEL_RATE} if entry.value.clean_label else {}
    plan, options = PlantOptions(**bench.options, **rate), entry.make_options({})
    state = entry.value.plant(Victim(victim, bench.training, plan, run), options)
    return victim, ImageTrigger(entry.name, options, state, plan.mode, plan.target)


def report(
    bench: Bench,
    name: str,
    column: str,
    model: Classifier,
    trigger: ImageTrigger | None,
    seconds: float,
    notes: dict[str, Any],
) -> None:
    probe = trigger.probe(bench.held_out, model.classes) if trigger else None
    result = measure_classifier(model, bench.held_out, probe)
    row = {
        "attack": name,
        "seed": bench.seed,
        "column": column,
        "accuracy": round(result.accuracy, 4),
        "asr": None if result.asr is None else round(result.asr, 4),
        "recovery_accuracy": None if result.recovery_accuracy is None else round(result.recovery_accuracy, 4),
        "n_clean": result.n_clean,
        "n_triggered": result.n_triggered,
        "seconds": round(seconds, 1),
        "suspicious": notes.get("suspicious"),
        "scores": [round(min(s, 1e6), 2) for s in notes.get("scores", [])],
        "versions": manifest.versions()["torch"],
        "threads": torch.get_num_threads(),
    }
    append(bench.results, row)
    print(row, flush=True)


def own(classifier: Classifier) -> Classifier:
    return classifier.replace(model=copy.deepcopy(classifier.model))


def cells(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    for name in dict.fromkeys(r["attack"] for r in rows):
        mine = [r for r in rows if r["attack"] == name]
        yield name, {c: [r for r in mine if r["column"] == c] for c in heads(rows)}


def heads(rows: list[dict[str, Any]]) -> list[str]:
    """Name the columns that were measured."""
    known = ["attacked", *COLUMNS, *ABLATION]
    return [c for c in known if c in {r["column"] for r in rows}]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out: accuracy / ASR / recovery accuracy of each column, means over the seeds."""
    shown_columns = heads(rows)
    lines = [
        "| attack | seeds | " + " | ".join(shown_columns) + " |",
        "|---" * (len(shown_columns) + 2) + "|",
    ]
    for name, columns in cells(rows):
        shown = " | ".join(_cell(columns[h]) for h in shown_columns)
        lines.append(f"| {name} | {len(columns['attacked'])} | {shown} |")
    legend = "Each cell: accuracy / ASR / recovery accuracy in %, mean over the seeds, and seconds."
    return "\n".join(lines) + f"\n\n{legend}\n"


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    keys = [k for k in ("accuracy", "asr", "recovery_accuracy") if rows[0][k] is not None]
    figures = " / ".join(f"{100 * mean(r[k] for r in rows):.1f}" for k in keys)
    return f"{figures} ({mean(r['seconds'] for r in rows):.0f} s)"


if __name__ == "__main__":
    main()
