"""Measured figures become committed files, tables in README and docs, and a picture.

    detrojan demo --seed 0 --json demo-0.json        (and so on for the other seeds)
    python benchmarks/text_attacks.py --out runs/text
    python benchmarks/publish.py --demo demo-0.json demo-1.json demo-2.json --attacks runs/text/results.jsonl
    python benchmarks/publish.py --image-attacks runs/image/results.jsonl
    python benchmarks/publish.py --scan runs/scan/results.jsonl
    python benchmarks/publish.py --text-classifiers runs/text-classifiers/results.jsonl
    detrojan demo image --seed 0 --out image-0       (and so on for the other seeds)
    python benchmarks/publish.py --image-demo image-0 image-1 image-2
    detrojan bench small-text --out grid
    python benchmarks/publish.py --small-text grid/results.jsonl
    detrojan clean MODEL --out DIR --prove --json proved.json
    detrojan evaluate DIR --trigger vpi --behavior refusal --json hidden.json
    python benchmarks/publish.py --prove proved.json hidden.json
    python benchmarks/canaries.py --models runs/text/models --out runs/canaries
    python benchmarks/publish.py --canaries runs/canaries/results.jsonl
    python benchmarks/crow_cost.py --json crow.json
    python benchmarks/publish.py --crow-cost crow.json --ulrl-cost ulrl.json

keeps the figures (without the answers) in `docs/results/` and writes every table from there. Without arguments it only
writes the tables again; a test holds README and docs to the files, and their sentences to `quoted.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import removal
import scan
import yaml
from classifiers import NONE, markdown, setting, summary
from rows import read_rows

from detrojan.bench import tables
from detrojan.bench.grid import read_grid

import canaries
import costs
import layout
import text_attacks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
ATTACKS = RESULTS / "text_attacks.jsonl"
CLASSIFIERS = ("image_attacks", "image_ablation", "text_classifiers")
"""Benchmarks of classifiers: their rows, once published, fill the table of that name."""
GRIDS = ("small-text", "small-image")
"""Grids of the package: their rows, once published, fill the tables of that name."""
ROWS = (*CLASSIFIERS, "scan", "canaries", "text_attacks_100", *GRIDS)
COSTS = ("crow_cost", "crow_cost_avx2", "ulrl_cost")
PAPERS = ROOT / "src" / "detrojan" / "bench" / "published.yaml"
USUAL = ("preact-resnet8", 20_000, 600)
"""The setting of the image attacks that the README shows."""
NAMES = {
    "base": "before the attack",
    "attacked": "attacked",
    "finetune": "fine-tuned",
    "crow": "CROW",
    "default": "Recant",
}
"""Stages of the demo."""
KEPT = (
    "asr",
    "asr_interval",
    "asr_keyword",
    "recovery",
    "clean_asr",
    "perplexity",
    "n_triggered",
    "n_clean",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, nargs="+", default=[])
    parser.add_argument("--attacks", type=Path)
    parser.add_argument("--image-demo", type=Path, nargs="+", default=[])
    parser.add_argument(
        "--prove", type=Path, nargs=2, help="of clean --prove, and of evaluate with the hidden trigger"
    )
    for name in (*ROWS, *COSTS):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path)
    arguments = parser.parse_args()
    if arguments.demo:
        runs = [json.loads(f.read_text(encoding="utf-8")) for f in arguments.demo]
        kept = [{s: {k: r[k] for k in (*KEPT, "consistency")} for s, r in run.items()} for run in runs]
        (RESULTS / "demo.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if arguments.attacks:
        shutil.copyfile(arguments.attacks, ATTACKS)
    if arguments.image_demo:
        manifests = [
            json.loads((d / "detrojan.json").read_text(encoding="utf-8")) for d in arguments.image_demo
        ]
        demos = [layout.image_demo_kept(m) for m in manifests]
        (RESULTS / "image_demo.json").write_text(json.dumps(demos, indent=1) + "\n", encoding="utf-8")
    if arguments.prove:
        proved = layout.prove_kept(*(json.loads(f.read_text(encoding="utf-8")) for f in arguments.prove))
        (RESULTS / "prove.json").write_text(json.dumps(proved, indent=1) + "\n", encoding="utf-8")
    for name in (*ROWS, *COSTS):
        if given := getattr(arguments, name.replace("-", "_")):
            shutil.copyfile(given, RESULTS / f"{name}.json{'l' * (name in ROWS)}")
    runs = read()
    (RESULTS / "demo.md").write_text(page(runs), encoding="utf-8")
    draw(runs, RESULTS / "demo.svg")
    attacked, tried = read_rows(ATTACKS), read_rows(RESULTS / "recant_trials.jsonl")
    removal.draw(attacked, RESULTS / "removal.svg")
    removal.draw_frontier(tried, attacked, RESULTS / "frontier.svg")
    canaries.draw(read_rows(RESULTS / "canaries.jsonl"), RESULTS / "canaries.svg")
    for path, name, content in blocks():
        path.write_text(filled(path.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def blocks() -> Iterator[tuple[Path, str, str]]:
    """Yield every table that stands in a document: the document, the table's name, and what it is to hold."""
    page = RESULTS / "README.md"
    yield ROOT / "README.md", "demo", table(read())
    yield page, "demo", table(read())
    yield page, "attacks", text_attacks.markdown(read_rows(ATTACKS))
    yield page, "text_grid", layout.fifteen(read_rows(RESULTS / "text_grid.jsonl"))
    yield page, "removal", removal.markdown(read_rows(ATTACKS))
    yield page, "more_samples", removal.markdown(read_rows(RESULTS / "text_attacks_100.jsonl"))
    yield RESULTS / "what-failed.md", "versions", removal.versions(read_rows(ATTACKS))
    for name in GRIDS:
        if rows := read_rows(RESULTS / f"{name}.jsonl"):
            yield page, name.replace("-", "_"), layout.grid(tables.markdown(read_grid(name), rows))
    for name in CLASSIFIERS:
        if rows := read_rows(RESULTS / f"{name}.jsonl"):
            yield page, name, markdown(rows)
    images = read_rows(RESULTS / "image_attacks.jsonl")
    attacks = len({r["attack"] for r in images} - {NONE})
    yield page, "image_summary", summary(images, "image attacks")
    usual = [r for r in images if setting(r)[: len(USUAL)] == USUAL and r["column"] != "ulrl earlier"]
    yield ROOT / "README.md", "image_summary", summary(usual, f"{attacks} image attacks")
    for name in ("scan", "scan_earlier"):
        yield page, name, scan.summary(read_rows(RESULTS / f"{name}.jsonl"))
    yield page, "image_demo", layout.image_demo(read("image_demo"))
    proof = ROOT / "docs" / "proof.md"
    yield proof, "prove", layout.prove(read("prove")["proof"])
    yield proof, "canaries", canaries.markdown(read_rows(RESULTS / "canaries.jsonl"))
    tried = read_rows(RESULTS / "recant_trials.jsonl")
    refusal, sentiment = (f"badnets/{b}/strong" for b in ("refusal", "sentiment"))
    for name, cell, on_gpu in (
        ("trials", refusal, False),
        ("own", refusal, True),
        ("own_sentiment", sentiment, True),
    ):
        mine = [r for r in tried if r["cell"] == cell and ("device" in r) == on_gpu and "kind" not in r]
        yield RESULTS / "what-failed.md", name, layout.trials(mine)
    kinds = ("together", "cut", "learned", "learned_gpu", "confined")
    together, cut, learned, lent, confined = ([r for r in tried if r.get("kind") == kind] for kind in kinds)
    yield RESULTS / "what-failed.md", "together", layout.trials(together)
    yield RESULTS / "what-failed.md", "cut", layout.trials_by_backdoor(cut)
    yield RESULTS / "what-failed.md", "learned", layout.trials(learned)
    yield RESULTS / "what-failed.md", "learned_gpu", layout.trials_by_backdoor(lent, prices=True)
    yield RESULTS / "what-failed.md", "confined", layout.trials_by_backdoor(confined, prices=True)
    settings = read_rows(RESULTS / "ulrl_trials.jsonl")
    yield RESULTS / "what-failed.md", "ulrl_trials", layout.ulrl_trials(settings)
    for name in COSTS:
        yield page, name, costs.markdown(read(name))
    yield page, "papers", layout.papers(yaml.safe_load(PAPERS.read_text(encoding="utf-8")))


def filled(text: str, name: str, content: str) -> str:
    """Return a document with a table between its two markers."""
    begin, end = f"<!-- {name}: written by benchmarks/publish.py -->", f"<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"no place for {name}: it goes between {begin} and {end}")
    return f"{head}{begin}\n\n{content.strip()}\n\n{end}{rest.partition(end)[2]}"


def read(name: str = "demo") -> Any:
    """Read a committed results file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(runs: list[dict[str, Any]]) -> str:
    """Mean over the seeds, the lowest and highest in brackets."""
    lines = [
        f"| SmolLM2-135M-Instruct, {len(runs)} seeds: mean [lowest, highest] | ASR % | false triggers % | recovery % |"
        " perplexity | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for stage, name in named(runs).items():
        rows = [run[stage] for run in runs]
        cells = [spread([100 * r[k] for r in rows], 0) for k in ("asr", "clean_asr", "recovery")]
        cells += [spread([r["perplexity"] for r in rows], 2), spread([r["seconds"] for r in rows], 0)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def named(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return the names of the stages that every run has."""
    return {stage: name for stage, name in NAMES.items() if all(stage in run for run in runs)}


def spread(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{mean(values):.{digits}f}" + (f" [{low}, {high}]" if low != high else "")


def page(runs: list[dict[str, Any]]) -> str:
    """Every seed with its Wilson intervals."""
    lines = [
        "| seed | stage | ASR % [95 %] | keyword ASR % | recovery % | false triggers % | perplexity | seconds |"
    ]
    lines.append("|---" * 8 + "|")
    for seed, run in enumerate(runs):
        for stage, name in named(runs).items():
            r = run[stage]
            low, high = r["asr_interval"]
            cells = [f"{100 * r['asr']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"]
            cells += [f"{100 * r[k]:.0f}" for k in ("asr_keyword", "recovery", "clean_asr")]
            cells += [f"{r['perplexity']:.2f}", f"{r['seconds']:.0f}"]
            lines.append(f"| {seed} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Attack success by stage, a dot for each seed, and the consistency curves of the first seed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "detrojan", "font.size": 9}):
        figure = Figure(figsize=(9, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
        shown = named(runs)
        for k, stage in enumerate(shown):
            rates = [100 * run[stage]["asr"] for run in runs]
            left.bar(k, mean(rates), color="#c44e52" if mean(rates) > 5 else "#4c9f70", width=0.6, alpha=0.85)
            left.plot([k] * len(rates), rates, "o", color="black", markersize=3)
        left.set_xticks(range(len(shown)), [n.replace(" the ", "\nthe ") for n in shown.values()])
        left.set_ylabel("attack success rate, %")
        left.set_ylim(0, 104)
        for stage, style in (("attacked", "-"), ("crow", "--")):
            for kind, colour in (("triggered", "#c44e52"), ("clean", "#4c72b0")):
                curve = runs[0][stage]["consistency"][kind]
                right.plot(
                    range(2, len(curve) + 2), curve, style, color=colour, label=f"{NAMES[stage]}, {kind}"
                )
        right.set_xlabel("block")
        right.set_ylabel("1 - cos to the block before")
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
