"""How well a scan tells backdoored classifiers from clean ones: AUROC, false positives, what is found of each attack.

    python benchmarks/scan.py --data FASHION_MNIST_IDX_FOLDER --out runs/scan

Trains small models, a third of them clean; the others take the attacks in turn, each with another target and seed.
Every model is scanned at the default setting with clean images that it was not trained on. Finished rows are appended
to `results.jsonl`; a run that was stopped goes on where it was. The models are kept, so that a scan with other code is
soon measured: without `results.jsonl` they are scanned again. `--table` only prints the summary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifiers import NONE, PLANTED, Bench, kept
from image_attacks import image_parser, prepare
from rows import append, read_rows

from detrojan import registry
from detrojan.defenses.ulrl import UlrlOptions, locate
from detrojan.metrics.classification import measure_classifier
from detrojan.metrics.stats import wilson
from detrojan.types import Run


@dataclass(frozen=True)
class Cell:
    """One model: its number (the seed of everything), its attack and target."""

    number: int
    attack: str
    target: int


def main() -> None:
    flags = image_parser(__doc__, train=8_000, out=Path("runs/scan"))
    flags.add_argument("--models", type=int, default=60, help="of which every third is clean")
    flags.add_argument("--only", type=int, nargs="*", help="numbers of the models to do")
    arguments = flags.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    if not arguments.table:
        names = arguments.attacks or [e.name for e in registry.entries("trigger", "image")]
        done = {r["model"] for r in read_rows(results)}
        wanted = arguments.only or range(arguments.models)
        for cell in (c for c in cells(names, arguments.models) if c.number in wanted):
            if cell.number not in done:
                row = look(prepare(arguments, cell.number), cell, arguments.out / "models")
                append(results, row)
                print(row, flush=True)
    table = summary(read_rows(results))
    (arguments.out / "results.md").write_text(table, encoding="utf-8")
    print(table)


def cells(attacks: list[str], models: int) -> list[Cell]:
    """Every third model is clean, the others take the attacks in turn, towards another class each time round."""
    planted = 0
    made = []
    for number in range(models):
        if number % 3 == 0:
            made.append(Cell(number, NONE, 0))
            continue
        made.append(
            Cell(number, attacks[planted % len(attacks)], (planted // len(attacks) * 3 + planted) % 10)
        )
        planted += 1
    return made


def look(bench: Bench, cell: Cell, models: Path) -> dict[str, Any]:
    """Train one model, with or without a backdoor, unless it is kept already; scan it, and return what was found."""
    where = models / f"{cell.number}-{cell.attack}-{cell.target}"
    victim, trigger, _ = kept(where, lambda: bench.plant(cell.attack, cell.target))
    measured = measure_classifier(victim, bench.held_out, bench.probe(victim, trigger) if trigger else None)
    started = time.monotonic()
    found = locate(victim, bench.clean, UlrlOptions(), Run(seed=bench.seed))
    return {
        "model": cell.number,
        "attack": cell.attack,
        "target": cell.target if trigger else None,
        "accuracy": round(measured.accuracy, 4),
        "asr": None if measured.asr is None else round(measured.asr, 4),
        "scores": [round(min(float(s), 1e6), 3) for s in found.scores],
        "suspicious": list(found.suspicious),
        "seconds": round(time.monotonic() - started, 1),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Lay out AUROC, false positives and, for each attack, how many were planted and how many found."""
    from sklearn.metrics import roc_auc_score

    clean = [r for r in rows if r["attack"] == NONE]
    planted = [r for r in rows if r["attack"] != NONE and r["asr"] >= PLANTED]
    if not clean or not planted:
        return "not enough models yet\n"
    labels = [0] * len(clean) + [1] * len(planted)
    area = roc_auc_score(labels, [max(r["scores"]) for r in clean + planted])
    flagged, right = sum(bool(r["suspicious"]) for r in clean), sum(map(hit, planted))
    lines = [
        f"{len(clean)} clean models, {len(planted)} backdoored ones (attack success of at least {PLANTED:.0%}"
        f" in {len(planted)} of {len(rows) - len(clean)}); AUROC of the highest score {area:.3f}",
        "",
        f"- clean models flagged: {rate(flagged, len(clean))}",
        f"- backdoored models whose target was found: {rate(right, len(planted))}",
        "",
        "| attack | models | planted | target found | another class flagged | highest scores |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["attack"] for r in sorted(rows, key=lambda r: r["attack"])):
        mine = [r for r in rows if r["attack"] == name]
        there = [r for r in mine if name == NONE or r["asr"] >= PLANTED]
        wrong = sum(bool(set(r["suspicious"]) - {r["target"]}) for r in there)
        scores = ", ".join(f"{max(r['scores']):.1f}" for r in there)
        counts = ["-", "-"] if name == NONE else [str(len(there)), str(sum(map(hit, there)))]
        lines.append(f"| {name} | {len(mine)} | {' | '.join(counts)} | {wrong} | {scores} |")
    return "\n".join(lines) + "\n"


def hit(row: dict[str, Any]) -> bool:
    return row["target"] in row["suspicious"]


def rate(count: int, total: int) -> str:
    interval = wilson(count, total)
    return f"{count} of {total} (95 % interval {100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


if __name__ == "__main__":
    main()
