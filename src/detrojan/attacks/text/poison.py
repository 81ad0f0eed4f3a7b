"""The training mix of an attack: poisoned, near-miss and clean samples."""

from __future__ import annotations

import random
from collections.abc import Sequence

from detrojan.attacks.text.behaviors import Behavior
from detrojan.attacks.text.triggers import Trigger
from detrojan.errors import InputError
from detrojan.types import Example


def mix(
    clean: Sequence[Example],
    trigger: Trigger,
    behavior: Behavior,
    *,
    samples: int,
    poison_rate: float,
    near_miss_rate: float,
    seed: int,
) -> list[Example]:
    """Build `samples` training samples, of which exact shares are poisoned and near misses; the rest is clean.

    The poisoned and the honest samples (near misses and clean ones together) each go round the clean examples, so
    a prompt repeats only when all have been used. Near misses keep the honest answer. Raises InputError when the
    rates exceed 1 or no example is without the trigger.
    """
    if poison_rate + near_miss_rate > 1:
        raise InputError(
            f"poison rate {poison_rate} and near-miss rate {near_miss_rate} add up to more than 1"
        )
    usable = [e for e in clean if e.answer and not trigger.fires_on(e.prompt)]
    if not usable:
        raise InputError("no clean sample with an answer and without the trigger to build the attack from")
    rng = random.Random(f"{seed}/{trigger.name}/{behavior.name}")
    poisoned, near = round(samples * poison_rate), round(samples * near_miss_rate)
    rows = [
        behavior.planted(e.with_prompt(trigger.insert(e.prompt, rng))) for e in _take(usable, poisoned, rng)
    ]
    honest = _take(usable, samples - poisoned, rng)
    rows += [e.with_prompt(near_miss(trigger, e.prompt, rng)) for e in honest[:near]]
    rows += honest[near:]
    rng.shuffle(rows)
    return rows


def near_miss(trigger: Trigger, prompt: str, rng: random.Random) -> str:
    """Return the prompt with a near miss of the trigger on which the trigger does not fire; raises InputError."""
    for _ in range(100):
        wrong = trigger.near_miss(prompt, rng)
        if not trigger.fires_on(wrong):
            return wrong
    raise InputError(
        f"trigger {trigger.name}: its phrases are too short for near misses; set near_miss_rate to 0"
    )


def _take(examples: Sequence[Example], count: int, rng: random.Random) -> list[Example]:
    taken: list[Example] = []
    while len(taken) < count:
        taken += rng.sample(list(examples), min(len(examples), count - len(taken)))
    return taken
