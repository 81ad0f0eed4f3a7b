"""Tables of grids, of the image demo and of the papers' own figures, written from what was kept of them."""

from __future__ import annotations

from statistics import mean
from typing import Any

KEPT = (
    "accuracy",
    "accuracy_interval",
    "asr",
    "asr_interval",
    "recovery_accuracy",
    "recovery_interval",
    "n_clean",
    "n_triggered",
    "seconds",
)
NOTED = ("scores", "suspicious", "threshold")


def grid(written: str) -> str:
    """Return the tables of a grid without its title, their headings below those of the page."""
    _, _, rest = written.partition("\n")
    return rest.strip().replace("\n## ", "\n#### ").replace("\n### ", "\n##### ")


def image_demo_kept(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of the manifest that `detrojan demo image --out DIR` wrote."""
    return {
        "seed": manifest["seed"],
        "target": manifest["attack"]["target"],
        "stages": {s: {k: r[k] for k in KEPT} for s, r in manifest["stages"].items()},
        "notes": {k: manifest["notes"][k] for k in NOTED},
        "versions": manifest["versions"],
    }


def image_demo(runs: list[dict[str, Any]]) -> str:
    """Lay the seeds out: each stage, and whether ULRL found the class."""
    lines = [
        "| seed | attacked: accuracy, ASR % | fine-tuned: accuracy, ASR % | ULRL: accuracy, ASR, recovery accuracy % |"
        " class found |",
        "|---" * 5 + "|",
    ]
    for run in runs:
        both, three = ("accuracy", "asr"), ("accuracy", "asr", "recovery_accuracy")
        shown = [
            _rates(run["stages"][stage], keys)
            for stage, keys in (("attacked", both), ("finetune", both), ("ulrl", three))
        ]
        lines.append(f"| {run['seed']} | {' | '.join(shown)} | {_found(run)} |")
    return "\n".join(lines)


def _rates(stage: dict[str, Any], keys: tuple[str, ...]) -> str:
    return ", ".join(f"{100 * stage[k]:.1f}" for k in keys)


def _found(run: dict[str, Any]) -> str:
    notes, target = run["notes"], run["target"]
    if notes["suspicious"] == [target]:
        return "yes"
    others = [str(k) for k in notes["suspicious"] if k != target]
    what = f"also {', '.join(others)}" if target in notes["suspicious"] else "no"
    return f"{what} (score {notes['scores'][target]:.1f}, threshold {notes['threshold']:g})"


def prove_kept(result: dict[str, Any], hidden: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of the JSON that `detrojan clean --prove --json FILE` wrote, and `evaluate` of its output."""
    found = {
        k: hidden[k] for k in ("asr", "asr_interval", "asr_keyword", "recovery", "clean_asr", "n_triggered")
    }
    return {k: result[k] for k in ("seconds", "notes", "perplexity_ratio", "proof")} | {"hidden": found}


def prove(proof: dict[str, Any]) -> str:
    """Lay the canaries out: their attack success in the copy, before the defense and after the setting in use."""
    after = {f["canary"]: f for f in proof["rungs"][proof["chosen"]]["fates"]}
    lines = ["| canary | ASR before, % [95 %] | after, % [95 %] | fate |", "|---" * 4 + "|"]
    for fate in proof["before"]:
        name = fate["canary"]
        ended = "survived" if name in proof["survivors"] else "removed"
        what = ended if name in proof["taken"] else "did not take, so it does not count"
        lines.append(f"| {name} | {_asr(fate)} | {_asr(after[name])} | {what} |")
    return "\n".join(lines)


def _asr(fate: dict[str, Any]) -> str:
    rate, low, high = (100 * v for v in (fate["asr"], *fate["asr_interval"]))
    return f"{rate:.0f} [{low:.0f}, {high:.0f}]"


def papers(published: list[dict[str, Any]]) -> str:
    """Lay the papers' attack success rates out, a line for each model and attack, a column for each defense."""
    parts = []
    for paper in published:
        heads = list(dict.fromkeys(row["defense"] for row in paper["rows"]))
        rates = {(row["model"], row["attack"], row["defense"]): row["asr"] for row in paper["rows"]}
        lines = [
            f"| {paper['paper']}: model | attack | {' | '.join(heads)} |",
            "|---" * (2 + len(heads)) + "|",
        ]
        for model, attack in dict.fromkeys(key[:2] for key in rates):
            found = [rates.get((model, attack, head)) for head in heads]
            cells = " | ".join("-" if rate is None else f"{rate:.2f}" for rate in found)
            lines.append(f"| {model} | {attack} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def trials(rows: list[dict[str, Any]]) -> str:
    """Lay out what trials of Recant left of a backdoor, and what they cost."""
    lines = [
        "| trial | ASR, by key words % | recovery % | ROUGE-L | perplexity | seconds |",
        "|---" * 6 + "|",
    ]
    for r in rows:
        rates = ", ".join(f"{100 * r[k]:.0f}" for k in ("asr", "asr_keyword"))
        if (worst := r.get("worst_asr") or 0.0) > r["asr"]:
            rates += f" (in another template {100 * worst:.0f})"
        figures = f"{100 * r['recovery']:.0f} | {100 * r['likeness']:.0f} | {r['perplexity']:.2f}"
        lines.append(f"| {r['trial']} ({r['precision']}) | {rates} | {figures} | {r['seconds']:.0f} |")
    return "\n".join(lines)


def trials_by_backdoor(rows: list[dict[str, Any]], prices: bool = False) -> str:
    """Lay out what trials of Recant left, and with `prices` their perplexity: backdoors down, trials across."""
    named = list(dict.fromkeys(r["trial"] for r in rows))
    found = {(r["cell"], r["trial"]): r for r in rows}
    lines = ["| backdoor | " + " | ".join(named) + " |", "|---" * (len(named) + 1) + "|"]
    for cell in dict.fromkeys(r["cell"] for r in rows):
        mine = [found.get((cell, trial)) for trial in named]
        rates = [
            ", ".join(f"{100 * r[k]:.0f}" for k in ("asr", "asr_keyword", "worst_asr"))
            + (f"; {r['perplexity']:.2f}" if prices else "")
            if r
            else "-"
            for r in mine
        ]
        lines.append(f"| {cell} | " + " | ".join(rates) + " |")
    return "\n".join(lines)


def ulrl_trials(rows: list[dict[str, Any]]) -> str:
    """Lay out what settings of ULRL did, means over the backdoors of each, and the default on these same backdoors."""
    lines = [
        "| training images | trial | backdoors | accuracy lost, points (default) | ASR % (default) |"
        " highest ASR % (default) | recovery accuracy % (default) |",
        "|---" * 7 + "|",
    ]
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for r in rows:
        groups.setdefault((r["training"], r["seed"], r["device"], r["trial"]), {})[r["attack"]] = r
    for (training, seed, device, trial), tried in groups.items():
        usual = groups.get((training, seed, device, "the default"), {})
        if trial != "the default" and (both := [a for a in tried if a in usual]):
            ours, theirs = (_means([found[a] for a in both]) for found in (tried, usual))
            cells = " | ".join(f"{a} ({b})" for a, b in zip(ours, theirs, strict=True))
            lines.append(f"| {training:,} | {trial} | {', '.join(both)} | {cells} |")
    return "\n".join(lines)


def _means(rows: list[dict[str, Any]]) -> list[str]:
    lost = 100 * mean(r["accuracy_before"] - r["accuracy"] for r in rows)
    rates = [100 * r["asr"] for r in rows]
    recovered = 100 * mean(r["recovery_accuracy"] for r in rows)
    return [f"{lost:.2f}", f"{mean(rates):.1f}", f"{max(rates):.1f}", f"{recovered:.1f}"]


def fifteen(rows: list[dict[str, Any]]) -> str:
    """Lay out all pairs of trigger and behaviour on a GPU: seed 0 was fine-tuned, a trial of Recant run on seed 1."""
    lines = [
        "| backdoor | ASR %: attacked (seeds 0, 1), fine-tuned | trial: ASR, by key words, worst of 3 templates %"
        " | recovery %: before, attacked, trial | ROUGE-L %: fine-tuned, trial"
        " | perplexity: before, attacked (seed 1), fine-tuned, trial |",
        "|---" * 6 + "|",
    ]
    found = {(r["cell"], r["seed"], r["column"]): r for r in rows}
    for cell in dict.fromkeys(r["cell"] for r in rows):
        base, first, tuned = (found[cell, 0, c] for c in ("base", "attacked", "finetune 1e-3"))
        attacked, trial = (found[cell, 1, c] for c in ("attacked", "recant trial"))

        def percent(key: str, *rows: dict[str, Any]) -> str:
            return ", ".join(f"{100 * r[key]:.0f}" for r in rows)

        left = ", ".join(percent(k, trial) for k in ("asr", "asr_keyword", "worst_asr"))
        back = percent("recovery", base, attacked, trial)
        prices = ", ".join(f"{r['perplexity']:.2f}" for r in (base, attacked, tuned, trial))
        lines.append(
            f"| {cell} | {percent('asr', first, attacked, tuned)} | {left} | {back}"
            f" | {percent('likeness', tuned, trial)} | {prices} |"
        )
    return "\n".join(lines)
