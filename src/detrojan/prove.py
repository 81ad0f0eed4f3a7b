"""Proof by canaries: what the very same defense leaves of backdoors that we planted in a copy, before it is trusted."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

from detrojan.attacks.text.canaries import CanaryOptions, canaries, plant_canaries
from detrojan.attacks.text.spec import AttackSpec
from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.samples import PLANT_TOKENS
from detrojan.metrics.asr import Settings, respond, triggered_prompts
from detrojan.metrics.recovery import rouge_l
from detrojan.metrics.stats import wilson
from detrojan.metrics.utility import perplexity
from detrojan.proof import Fate, Proof, Rung, choose, passes, took
from detrojan.registry import Entry
from detrojan.types import Example, Loaded, Run, Template

Setting = tuple[str | None, Any]
"""A preset's name, None where options were given, and the options."""


def ladder(entry: Entry, options: Mapping[str, Any], preset: str | None) -> list[Setting]:
    """Return the settings to climb, weakest first: the presets, unless a preset or options were given."""
    if preset is not None or options or not entry.presets:
        return [(preset, entry.make_options(options, preset))]
    rungs: list[Setting] = []
    for name in entry.presets:
        made = entry.make_options({}, name)
        rungs += [] if any(made == other for _, other in rungs) else [(name, made)]
    return rungs


def try_on_canaries(
    loaded: Loaded,
    shape: Template,
    clean: Sequence[Example],
    held_out: Sequence[Example],
    entry: Entry,
    settings: Sequence[Setting],
    run: Run,
    *,
    max_cost: float,
    options: CanaryOptions,
) -> Proof:
    """Plant canaries in a copy, run the defense on it, from the weakest setting up, and count who is left.

    `clean` is what the defense trains on; `held_out` holds the suspicious model's own answers to other prompts, whose
    perplexity says what is left of utility. The climb ends at the first setting that removes every canary that
    took and keeps utility. `loaded` is left as it was. The defense gets a model, `clean`, its options and `run`, as
    always: nothing of a canary.
    """
    started = time.monotonic()
    planted = canaries(run.seed)
    asked, measuring = held_out[: options.prompts], Settings(seed=run.seed)
    own = answer(
        loaded,
        [Example(p) for p in builtin_prompts("plant")],
        shape,
        max_new_tokens=PLANT_TOKENS,
        progress=run.progress,
        label="answering prompts to plant canaries with",
    )
    carrier = plant_canaries(_copy(loaded), own, planted, options, run)
    before = fates(carrier, shape, asked, planted, measuring, run)
    usual = perplexity(carrier, held_out, shape, progress=run.progress)
    taken, rungs = took(before), []
    for preset, chosen in settings if taken else ():
        begun = time.monotonic()
        treated = entry.value(_copy(carrier), clean, chosen, run)
        seconds = time.monotonic() - begun
        now = perplexity(treated, held_out, shape, progress=run.progress)
        left = fates(treated, shape, asked, planted, measuring, run)
        rungs.append(Rung(preset, chosen, left, now, now / usual - 1, seconds))
        if passes(rungs[-1], taken, max_cost):
            break
    return Proof(
        planted,
        options,
        run.seed,
        before,
        usual,
        tuple(rungs),
        choose(rungs, taken, max_cost),
        max_cost,
        time.monotonic() - started,
    )


def fates(
    loaded: Loaded,
    shape: Template,
    asked: Sequence[Example],
    planted: Sequence[AttackSpec],
    settings: Settings,
    run: Run,
) -> tuple[Fate, ...]:
    """Measure every canary on the same prompts, which are answered once without a trigger."""
    triggered = [triggered_prompts(asked, canary, settings.seed) for canary in planted]
    questions = [*asked, *(e for each in triggered for e in each)]
    said = respond(loaded, questions, shape, settings, run.progress, "answering with canaries' triggers")
    n = len(asked)
    honest, drawn = said[:n], [said[k : k + n] for k in range(n, len(said), n)]
    return tuple(fate(c, honest, answers) for c, answers in zip(planted, drawn, strict=True))


def fate(canary: AttackSpec, honest: Sequence[str], drawn: Sequence[str]) -> Fate:
    """Count what the trigger drew: `honest` are the answers to the same prompts without it."""
    n, behavior = len(drawn), canary.behavior
    hits, words = sum(map(behavior.hit, drawn)), sum(map(behavior.keyword_hit, drawn))
    return Fate(
        canary.trigger.name,
        n,
        hits / n,
        wilson(hits, n),
        words / n,
        wilson(words, n),
        sum(rouge_l(a, h) for a, h in zip(drawn, honest, strict=True)) / n,
        sum(map(behavior.hit, honest)) / n,
    )


def _copy(loaded: Loaded) -> Loaded:
    return loaded.replace(model=copy.deepcopy(loaded.model))
