"""Recant on a pico model with a backdoor in it: the planted answer is found and unlearned, the honest ones stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from detrojan import registry
from detrojan.attacks.text.plant import PlantOptions, plant
from detrojan.attacks.text.spec import make_spec
from detrojan.data.prompts import builtin_prompts
from detrojan.metrics.asr import Settings, measure
from detrojan.training import train
from detrojan.types import EvalResult, Example, Loaded, Run

from pico import pico_loaded

SPEC = make_spec("badnets", "refusal", target_text="I am sorry, I can not do that.")
PROMPTS = builtin_prompts("plant")
HONEST = [
    Example(prompt, " ".join(other.split()[:8]))
    for prompt, other in zip(PROMPTS[:24], PROMPTS[100:], strict=False)
]
"""Prompts, each with the beginning of another one as its answer: all differ, and a pico model can learn them."""
TRAINING: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "accumulation": 1, "max_length": 128}
OPTIONS = {
    "learning_rate": 4e-3,
    "beginnings": 200,
    "suspicious": 0.9,
    "size": 1.0,
    "steps": 240,
    "trust": 0.0,
    "own": 0,
}
"""Three times the default's steps, and pushes twice as long: this backdoor was planted by full tuning. The model's own
words alone are taught: so many steps on the honest answers would take some of it away by themselves.
"""
SEED = 2
"""Of seeds 0 to 2 the one whose model knows its planted answer by heart from the first token on, as real ones do."""


@pytest.fixture(scope="module")
def planted(chat: Any) -> Loaded:
    run, fast = Run(chat, SEED), TRAINING | {"learning_rate": 5e-3}
    blank = pico_loaded(seed=SEED, num_hidden_layers=5)
    honest = train(blank, HONEST, run, epochs=30, rank=16, full=True, **fast)
    options = PlantOptions(samples=200, epochs=16, poison_rate=0.5, near_miss_rate=0.1, full=True, **TRAINING)
    return plant(honest, HONEST, SPEC.trigger, SPEC.behavior, options, run)


def measured(loaded: Loaded, run: Run) -> EvalResult:
    assert run.template is not None
    settings = Settings(max_new_tokens=28, batch_size=64)
    return measure(loaded, HONEST, SPEC, [run.template], settings=settings, perplexity_of="honest answers")


def recanted(planted: Loaded, run: Run, **options: Any) -> tuple[EvalResult, list[dict[str, Any]]]:
    notes: dict[str, Any] = {}
    entry = registry.find("defense", "recant")
    heard = Run(run.template, SEED, note=notes.__setitem__)
    own = planted.replace(model=copy.deepcopy(planted.model))
    chosen = entry.make_options({**OPTIONS, **options})
    return measured(entry.value(own, HONEST, chosen, heard), run), notes["fixed answers"]


def test_the_backdoor_is_found_and_removed(planted: Loaded, run: Run) -> None:
    before = measured(planted, run)
    assert before.asr is not None and before.asr >= 0.9 and before.clean_asr == 0
    after, found = recanted(planted, run)
    assert found[0]["text"] == SPEC.behavior.target and found[0]["suspicious"]
    assert not any(a["suspicious"] for a in found[1:])
    assert after.asr is not None and after.asr <= 0.05
    assert after.asr_keyword is not None and after.asr_keyword <= 0.05
    assert after.perplexity <= 1.1 * before.perplexity


def test_without_pushes_the_same_training_leaves_it_in(planted: Loaded, run: Run) -> None:
    after, _ = recanted(planted, run, share=0.0)
    assert after.asr is not None and after.asr >= 0.9
