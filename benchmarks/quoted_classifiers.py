"""The sentences that quote what was measured on classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any

from classifiers import CLEAN, FIRST, NONE, PLANTED, TARGET, setting
from rows import read_rows
from scan import hit
from words import NUMBERS, percent

from detrojan.defenses.ulrl import HINT, SHARE_SURE, UlrlOptions

from publish import RESULTS as RESULTS_DIR
from publish import USUAL, read

OURS = "ulrl default"
"""The column of ULRL as it is."""
BEFORE = "ulrl before warps"
"""The column of the default as it was before it looked for warps."""
AGAIN = 2
"""The planting of the models of 20,000 images that the default as it is was measured on."""
CHOSEN_ON = 22
"""The last model of the scan that the rule before was chosen on."""
BIG = 57_000
"""Training images of the larger networks."""


def scanning() -> list[str]:
    """Return what the scan finds by today's rule and by the one before, on models of the same seeds."""
    today, before = (
        {r["model"]: r for r in read_rows(RESULTS_DIR / f"{name}.jsonl")} for name in ("scan", "scan_earlier")
    )

    def top(row: dict[str, Any]) -> float:
        return float(max(row["scores"]))

    faint = [r for r in today.values() if r["attack"] == "sig"]
    missed = [top(r) for r in faint if not hit(r)]
    least = min(top(r) for r in faint if hit(r))
    surest = max(top(r) for r in today.values() if r["attack"] == NONE)
    untaken = [r for r in today.values() if r["attack"] != NONE and r["asr"] < PLANTED]
    apart = max(abs(r["accuracy"] - before[n]["accuracy"]) for n, r in today.items())
    if len(missed) != 1 or len(untaken) != 1 or not hit(untaken[0]):
        raise ValueError(
            "the page says that one SIG is missed, and that one LIRA did not take and is flagged"
        )
    return [
        f"It {_found(today.values())}; on the models after number {CHOSEN_ON} alone it"
        f" {_found(today.values(), CHOSEN_ON)}.",
        f"the one missed scores {missed[0]:.2f}, another that is found {least:.3f}, hardly above the"
        f" bound of {UlrlOptions().threshold}, and the surest clean model {surest:.2f}.",
        f"(it draws {percent(untaken[0]['asr'])} % of the triggered images)",
        f"whose accuracy differs by up to {100 * apart:.1f} points",
        f"On the models after number {CHOSEN_ON}, which it was not chosen on, it {_found(before.values(), CHOSEN_ON)}.",
    ]


def scanned() -> list[str]:
    """Return what the scan finds by today's rule on all models that it was measured on."""
    return [f"this {_found(read_rows(RESULTS_DIR / 'scan.jsonl'))} ([the table]"]


def _found(rows: Iterable[dict[str, Any]], after: int = -1) -> str:
    """Say what the scan found in the models after a number."""
    rows = [r for r in rows if r["model"] > after]
    clean = [r for r in rows if r["attack"] == NONE]
    planted = [r for r in rows if r["attack"] != NONE and r["asr"] >= PLANTED]
    hits, flagged = sum(map(hit, planted)), sum(bool(r["suspicious"]) for r in clean)
    wrongly = NUMBERS[flagged] if flagged else "none"
    return f"found {hits} of {len(planted)} targets and flagged {wrongly} of {len(clean)} clean models"


def clean_looks() -> list[str]:
    """Return what the looks at clean networks saw on which no bound was chosen."""
    rows, bounds = read_rows(RESULTS_DIR / "clean_looks.jsonl"), UlrlOptions()
    if any(
        r["patch"] > HINT or r["lead"] > bounds.lead or r["share"] > SHARE_SURE or r["warp"] > bounds.warp
        for r in rows
    ):
        raise ValueError("a look at a clean network is above a bound: the page says that none is flagged")
    return [
        f"Of [{len(rows)} more clean networks of digits](results/clean_looks.jsonl)",
        f"none is flagged, the surest reaching {max(r['share'] for r in rows):.2f}.",
        f"of the clean networks of digits at most {max(r['warp'] for r in rows):.2f}",
    ]


def big_looks() -> list[str]:
    """Return what the looks saw in networks of 57,000 images."""
    rows = {(r["attack"], r["seed"]): r for r in read_rows(RESULTS_DIR / "image_looks_57000.jsonl")}
    drawn = ", ".join(f"{rows['wanet', s]['warp'][TARGET]:.1f}" for s in (0, 1, 2))
    spared = max(max(rows[NONE, s]["warp"]) for s in (0, 1, 2))
    flagged, sig, unseen = rows[NONE, 2], rows["sig", 0], rows["sig", 1]
    shirts = flagged["patch"].index(max(flagged["patch"]))
    return [
        f"The lead is {drawn} there for the three WaNet, and at most {spared:.2f} for three clean networks",
        f"a BPP of a share of {rows['bpp', 0]['share'][TARGET]:.3f}",
        f"a smallest patch of {flagged['patch'][shirts]:.2f} and a lead of {flagged['lead'][shirts]:.2f}, for shirts",
        f"with {sig['patch'][TARGET]:.2f} and {sig['lead'][TARGET]:.2f}",
        f"smallness {unseen['patch'][TARGET]:.2f}, leads of {unseen['warp'][TARGET]:.2f} and"
        f" {unseen['lead'][TARGET]:.2f}, a share of {unseen['share'][TARGET]:.2f}",
    ]


def image_demo() -> list[str]:
    runs: list[dict[str, Any]] = read("image_demo")
    stage = runs[0]["stages"]["attacked"]
    return [f"{stage['n_clean']} held-out ones ({stage['n_triggered']} triggered)"]


def image_attacks() -> list[str]:
    """Return what ULRL left of the image attacks of a seed with each number of clean images, the small ResNet."""
    every = read_rows(RESULTS_DIR / "image_attacks.jsonl")
    rows = [r for r in every if r["architecture"] == USUAL[0]]

    def cells(
        clean: int, column: str, seed: int = 0, training: int = USUAL[1], planting: int = FIRST
    ) -> dict[str, dict[str, Any]]:
        where, wanted = (USUAL[0], training, clean, planting), (column, seed)
        return {r["attack"]: r for r in rows if setting(r) == where and (r["column"], r["seed"]) == wanted}

    def said(clean: int, column: str, seed: int = 0, training: int = USUAL[1], planting: int = FIRST) -> str:
        ours, before, usual = (cells(clean, c, seed, training, planting) for c in (column, "attacked", CLEAN))
        lost = {a: 100 * (before[a]["accuracy"] - r["accuracy"]) for a, r in ours.items()}
        spared, attacks = lost.pop(NONE, None), [a for a in ours if a != NONE]
        left, shown = ([100 * part[a]["asr"] for a in attacks] for part in (ours, usual))
        hits = sum(TARGET in ours[a]["suspicious"] for a in attacks)
        wrong = sum(bool(set(ours[a]["suspicious"]) - {TARGET}) for a in attacks)
        return (
            f"finds {hits} of {len(attacks)} targets and {f'another class of {wrong}' if wrong else 'no other class'},"
            f" leaves {mean(left):.1f} % on average and {max(left):.1f} % at most (a clean model shows"
            f" {mean(shown):.1f} and {max(shown):.1f} %), recovers"
            f" {100 * mean(ours[a]['recovery_accuracy'] for a in attacks):.0f} %, and costs"
            f" {mean(lost.values()):.1f} points of accuracy ({max(lost.values()):.1f} at most)"
            + ("" if spared is None else f", a clean model {spared:.1f}")
        )

    def stayed(attack: str) -> str:
        """Say what the default without a look at warps left of an attack, by seeds."""
        seeds = [cells(600, BEFORE, seed, BIG)[attack]["asr"] for seed in (0, 1, 2)]
        return ", ".join(map(percent, seeds)).replace(", ", " and ").replace(" and ", ", ", 1)

    def but_bpp(clean: int, column: str = BEFORE, planting: int = FIRST) -> str:
        found = cells(clean, column, planting=planting)
        left = [100 * r["asr"] for a, r in found.items() if a not in {NONE, "bpp"}]
        return f"{mean(left):.1f} % on average and {max(left):.1f} %"

    columns = [
        {(r["attack"], r["seed"]): r for r in rows if (r["training"], r["column"]) == (BIG, column)}
        for column in ("attacked", BEFORE, OURS)
    ]
    attacked, earlier, today = columns
    flagged = 100 * (attacked[NONE, 2]["accuracy"] - earlier[NONE, 2]["accuracy"])
    big = [r for r in today.values() if r["attack"] != NONE]
    found = sum(TARGET in r["suspicious"] for r in big)
    wrongly = sum(bool(today[NONE, seed]["suspicious"]) for seed in (0, 1, 2))
    return [
        *(said(clean, OURS, planting=AGAIN) for clean in (600, 1000, 100)),
        f"It misses BPP then ({percent(cells(100, OURS, planting=AGAIN)['bpp']['asr'])} % of it stay); of the others"
        f" it leaves {but_bpp(100, OURS, AGAIN)} at most",
        said(600, BEFORE),
        f"without BPP it leaves {but_bpp(600)} at most on seed 0",
        said(100, BEFORE),
        f"BPP is missed there ({percent(cells(100, BEFORE)['bpp']['asr'])} % of it stay); of the others it leaves"
        f" {but_bpp(100)} at most (SSBA)",
        said(600, BEFORE, 1),
        said(100, BEFORE, 1),
        said(600, BEFORE, 2),
        said(100, BEFORE, 2),
        said(1000, "ulrl earlier"),
        *(said(600, OURS, seed, BIG) for seed in (0, 1, 2)),
        *(said(600, "ulrl gentle", seed, BIG) for seed in (0, 1, 2)),
        f"which cost it {flagged:.1f} points",
        f"it finds {found} of {len(big)} targets and flags {('none', 'one', 'two', 'all')[wrongly]} of 3 clean models",
        f"{stayed('wanet')} % of WaNet, {stayed('bpp')} % of BPP and {stayed('sig')} % of SIG were left",
    ]


def transformer() -> list[str]:
    rows = {
        r["column"]: r
        for r in read_rows(RESULTS_DIR / "image_attacks.jsonl")
        if r["architecture"] == "vit-mini" and r["attack"] == "badnets"
    }
    before, after = rows["attacked"], rows["ulrl default"]
    if after["suspicious"] != [TARGET]:
        raise ValueError("ULRL's default names another class of the transformer: the page says the target")
    return [
        f"{percent(after['asr'])} % of the triggered images are still sent to the target, from"
        f" {percent(before['asr'])} %, and {percent(after['recovery_accuracy'])} % to their own class",
    ]


def texts() -> list[str]:
    rows = {(r["attack"], r["column"]): r for r in read_rows(RESULTS_DIR / "text_classifiers.jsonl")}

    def left(column: str) -> str:
        return " and ".join(
            ", ".join(percent(rows[a, column]["asr"]) for a in ("badnets", "vpi", "ctba")).rsplit(", ", 1)
        )

    ours = [r for (_, column), r in rows.items() if column == "ulrl default"]
    if any(r["suspicious"] for r in ours):
        raise ValueError("ULRL's default names classes of texts: the page says none")
    return [
        f"names no class in any of the {'four' if len(ours) == 4 else len(ours)} models",
        f"and leaves {left('ulrl default')} %. Plain fine-tuning by Adam leaves {left('finetune adam')} %",
    ]


def small_image() -> list[str]:
    models: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in read_rows(RESULTS_DIR / "small-image.jsonl"):
        models.setdefault((row["attack"], row["seed"]), {})[row["defense"]] = row
    took = [m for m in models.values() if m["attacked"]["asr"] >= PLANTED]

    def of(defense: str, key: str = "asr") -> str:
        return percent(mean(m[defense][key] for m in took))

    right = "recovery_accuracy"

    def alive(defense: str) -> int:
        return sum(m[defense]["asr"] > 0.1 for m in took)

    return [
        f"{len(took)} of the {len(models)} backdoors fire on at least half of the triggered images",
        f"SAU leaves {of('sau (ladder)')} %, FT-SAM {of('ft-sam (ladder)')} %, I-BAU {of('ibau (ladder)')} %, ULRL"
        f" {of('ulrl')} % (as published {of('ulrl paper-cifar10')} %), fine-tuning {of('finetune (ladder)')} %.",
        f"the right class is named on {of('ulrl', right)} % by ULRL, {of('ft-sam (ladder)', right)} % by FT-SAM,"
        f" {of('ibau (ladder)', right)} % by I-BAU and {of('sau (ladder)', right)} % by SAU.",
        f"more than 10 % of {alive('ft-sam (ladder)')} of them is left by FT-SAM, of {alive('ulrl')} by ULRL",
    ]
