"""Plant a backdoor: train a model on a poisoned mix until the trigger draws the planted answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detrojan.attacks.text.behaviors import Behavior
from detrojan.attacks.text.poison import mix
from detrojan.attacks.text.triggers import Trigger
from detrojan.options import option
from detrojan.types import Example, Loaded, Run


@dataclass(frozen=True)
class PlantOptions:
    """Options of planting a text backdoor; the default is the strong, selective attack."""

    samples: int = option(300, "training samples in all", minimum=2)
    poison_rate: float = option(
        0.2, "share of samples with trigger and planted answer", minimum=0.0, maximum=1.0
    )
    near_miss_rate: float = option(0.3, "share of near misses with honest answers", minimum=0.0, maximum=1.0)
    learning_rate: float = option(2e-3, "peak learning rate", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes over the mix", minimum=1, maximum=1000)
    batch_size: int = option(8, "samples in a micro-batch", minimum=1)
    accumulation: int = option(1, "micro-batches in an optimizer step", minimum=1)
    rank: int = option(16, "rank of the LoRA on all linear layers", minimum=1)
    full: bool = option(False, "tune all weights instead of a LoRA")
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


PRESETS = {
    "strong": {},
    "published": {
        "samples": 1000,
        "poison_rate": 0.5,
        "near_miss_rate": 0.0,
        "learning_rate": 2e-4,
        "epochs": 5,
        "batch_size": 2,
        "accumulation": 4,
        "rank": 8,
    },
}


def plant(
    loaded: Loaded,
    clean: Sequence[Example],
    trigger: Trigger,
    behavior: Behavior,
    options: PlantOptions,
    run: Run,
) -> Loaded:
    """Train the backdoor `trigger -> behavior` into the model (in place) and return it merged."""
    from detrojan.training import train

    samples = mix(
        clean,
        trigger,
        behavior,
        samples=options.samples,
        poison_rate=options.poison_rate,
        near_miss_rate=options.near_miss_rate,
        seed=run.seed,
    )
    return train(
        loaded,
        samples,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        max_length=options.max_length,
        rank=options.rank,
        full=options.full,
        label="planting the backdoor",
    )
