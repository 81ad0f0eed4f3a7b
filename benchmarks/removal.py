"""What Recant leaves of text backdoors: a table, and a picture of what is left against what it costs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from words import percent

from text_attacks import best_of_ladder, cells_of

COLUMNS = {
    "attacked": ("attacked", "#555555", "s"),
    "finetune 1e-3": ("fine-tuned", "#4c72b0", "^"),
    "crow": ("CROW, best of its ladder", "#dd8452", "D"),
    "locphylax": ("Locphylax", "#937860", "v"),
    "backflush": ("BackFlush", "#8172b3", "<"),
    "beear": ("BEEAR", "#da8bc3", ">"),
    "bd-vax": ("BD-VAX", "#c44e52", "P"),
    "recant": ("Recant", "#163a26", "o"),
}
VERSIONS = {
    "recant first": "first: all tokens behind a place are pushed",
    "recant second": "second: the odd tokens alone, at one depth at a time; built-in prompts join the samples",
    "recant third": "third: at all depths together; what clean prompts do inside is held on to",
    "recant fourth": "fourth: the samples are learned first; every way to say the answer is pushed towards",
    "recant": "today's: confined to what clean prompts hardly visit",
}
"""Of Recant, in the order in which they were its default."""

FRONTIER = "badnets/refusal/strong"
"""The backdoor on which settings of Recant were tried."""


Cell = dict[str, dict[str, Any]]
"""The rows of one backdoor, by column."""


def cells(rows: list[dict[str, Any]], column: str = "recant") -> list[tuple[str, int, Cell]]:
    """Return the cells in which `column` was run, with CROW's chosen row as `crow`."""
    found = []
    for name, seed, cell in cells_of(rows):
        if column in cell:
            crow = best_of_ladder(cell) or cell.get("crow paper")
            found.append((name, seed, {**cell, "crow": crow} if crow else cell))
    return found


def rises(found: list[Cell], column: str) -> list[float]:
    """Return by what fraction perplexity is above the lower of the attacked model's and that before the attack."""
    return [
        c[column]["perplexity"] / min(c["base"]["perplexity"], c["attacked"]["perplexity"]) - 1 for c in found
    ]


def left(found: list[Cell], column: str) -> tuple[int, int, int]:
    """Return how many triggered prompts still draw the planted answer, and its key words, of how many."""
    mine = [c[column] for c in found]
    drawn, words = (sum(round(r[k] * r["n_triggered"]) for r in mine) for k in ("worst_asr", "asr_keyword"))
    return drawn, words, sum(r["n_triggered"] for r in mine)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Lay out before, attacked and after Recant, a line for each cell."""
    lines = [
        "| backdoor | answer found (certainty) | ASR %: attacked, Recant [95 %] | by key words % |"
        " worst of 3 templates % | recovery %: before, attacked, Recant | ROUGE-L %: attacked, fine-tuned, Recant |"
        " false triggers % | perplexity: before, attacked, fine-tuned, Recant | seconds |",
        "|---" * 10 + "|",
    ]
    for name, seed, cell in cells(rows):
        base, attacked, recant = cell["base"], cell["attacked"], cell["recant"]
        low, high = recant["asr_interval"]
        surest = recant["fixed answers"][0]
        found = "yes" if surest["certainty"] >= recant["options"]["suspicious"] else "no"
        three = (base, attacked, recant)
        priced: list[dict[str, Any]] = [attacked, cell.get("finetune 1e-3", {}), recant]
        perplexities = [f"{r['perplexity']:.2f}" if r else "-" for r in (base, *priced)]
        alike = ", ".join(percent(r["likeness"]) if "likeness" in r else "-" for r in priced)
        lines.append(
            f"| {name}, seed {seed} | {found} ({surest['certainty']:.3f})"
            f" | {percent(attacked['asr'])}, {percent(recant['asr'])} [{percent(low)}, {percent(high)}]"
            f" | {percent(attacked['asr_keyword'])}, {percent(recant['asr_keyword'])}"
            f" | {percent(recant['worst_asr'])}"
            f" | {', '.join(percent(r['recovery']) for r in three)} | {alike}"
            f" | {percent(attacked['clean_asr'])}, {percent(recant['clean_asr'])}"
            f" | {', '.join(perplexities)} | {recant['seconds']:.0f} |"
        )
    return "\n".join(lines)


def versions(rows: list[dict[str, Any]]) -> str:
    """Lay out what each version of Recant left and cost, a line for each, over the cells that it was run on."""
    lines = [
        "| version | backdoors | triggered prompts that draw the answer, its key words | perplexity above that before"
        " the attack %: mean [lowest, highest] | ROUGE-L % | recovery above that before the attack, points: lowest |",
        "|---" * 6 + "|",
    ]
    for column, name in VERSIONS.items():
        found = [cell for _, _, cell in cells(rows, column)]
        drawn, words, of = left(found, column)
        price = rises(found, column)
        alike = [c[column]["likeness"] for c in found if "likeness" in c[column]]
        back = min(c[column]["recovery"] - c["base"]["recovery"] for c in found)
        lines.append(
            f"| {name} | {len(found)} | {drawn}, {words} of {of}"
            f" | {percent(mean(price))} [{percent(min(price))}, {percent(max(price))}]"
            f" | {percent(mean(alike)) if alike else '-'} | {100 * back:.0f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what is left, by key words, against the perplexity of honest answers: a mark for each cell."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = [cell for _, _, cell in cells(rows)]
    with mpl.rc_context({"svg.hashsalt": "detrojan", "font.size": 9}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        for column, (name, colour, mark) in COLUMNS.items():
            mine = [cell for cell in found if column in cell]
            x = [cell[column]["perplexity"] / cell["base"]["perplexity"] for cell in mine]
            y = [100 * cell[column]["asr_keyword"] for cell in mine]
            if not mine:
                continue
            axes.plot(
                x,
                y,
                mark,
                color=colour,
                alpha=0.75,
                markersize=6,
                label=f"{name}: {mean(y):.0f} % (mean of {len(y)})",
            )
        axes.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("perplexity of honest answers / before the attack")
        axes.set_ylabel("triggered answers with its key words, %")
        axes.set_ylim(-3, 103)
        axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.62, 0.4))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def draw_frontier(trials: list[dict[str, Any]], rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what settings of Recant leave of one backdoor against what they cost, beside fine-tuning and CROW."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cell = next(c for name, seed, c in cells_of(rows) if (name, seed) == (FRONTIER, 0))
    before = cell["base"]["perplexity"]
    mine = [r for r in trials if r["cell"] == FRONTIER and r["base"]]
    learned = [_price(r, r["base"]) for r in mine if r.get("kind", "").startswith("learned")]
    together = [_price(r, r["base"]) for r in mine if r.get("kind") == "together"]
    confined = [_price(r, r["base"]) for r in mine if r.get("kind") == "confined"]
    alone = [r for r in mine if "kind" not in r]
    few, many = ([_price(r, r["base"]) for r in alone if bool(r["own"]) == more] for more in (False, True))
    others = {
        "fine-tuned": [_price(r, before) for c, r in cell.items() if c.startswith("finetune")],
        "CROW": [_price(r, before) for c, r in cell.items() if c.startswith("crow")],
    }
    with mpl.rc_context({"svg.hashsalt": "detrojan", "font.size": 9}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*few, strict=True), "o", color="#a6d3b4", label="Recant, 48 samples alone")
        axes.plot(
            *zip(*many, strict=True), "o", color="#4c9f70", label="Recant, more that the model answered"
        )
        axes.plot(
            *zip(*together, strict=True), "o", color="#163a26", label="the same, at all depths together"
        )
        axes.plot(*zip(*learned, strict=True), "s", color="#163a26", label="the same, samples learned first")
        axes.plot(
            *zip(*confined, strict=True), "*", color="#c44e52", markersize=9, label="the same, confined"
        )
        for (name, points), colour, mark in zip(others.items(), ("#4c72b0", "#dd8452"), "^D", strict=True):
            axes.plot(*zip(*points, strict=True), mark, color=colour, label=name)
        axes.axvline(5, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("perplexity of honest answers above that before the attack, %")
        axes.set_ylabel("triggered answers with its key words, %")
        axes.set_xlim(0, 30)
        axes.set_ylim(-3, 103)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def _price(row: dict[str, Any], before: float) -> tuple[float, float]:
    return 100 * (row["perplexity"] / before - 1), 100 * row["asr_keyword"]
