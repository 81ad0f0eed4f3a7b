"""Locphylax: plant known backdoors, then heal them (arXiv:2510.10265).

Its observation: backdoors that are planted into a backdoored model gather in one place of the
representation space with the unknown one, so that healing the known ones should heal the unknown. Both
stages tune a LoRA:

    1. plant    min CE(planted answer | x + decoy) + CE(answer | x)
    2. recover  min CE(answer | x + decoy)         + CE(answer | x)

The decoys are drawn by the seed (`decoys`). Their words, the counts, rates and passes are ours: the public
descriptions that we found leave them open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from detrojan.defenses.decoys import MOST, check_merged, decoys, twins
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import train
from detrojan.types import Example, Loaded, Run


@dataclass(frozen=True)
class LocphylaxOptions:
    """Options of Locphylax."""

    decoys: int = option(3, "known backdoors that are planted and healed", minimum=1, maximum=MOST)
    samples: int = option(30, "triggered samples of each decoy", minimum=1)
    learning_rate: float = option(1e-3, "peak learning rate of both stages", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes of planting", minimum=1, maximum=1000)
    recovery_epochs: int = option(2, "passes of recovery", minimum=1, maximum=1000)
    batch_size: int = option(8, "samples in a step", minimum=1)
    rank: int = option(16, "rank of the LoRA on all linear layers", minimum=1)
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


@defense(
    "locphylax", task="causal-lm", options=LocphylaxOptions, paper="arXiv:2510.10265", presets={"default": {}}
)
def locphylax(loaded: Loaded, clean: Sequence[Example], options: LocphylaxOptions, run: Run) -> Loaded:
    """Plant known backdoors, so that the unknown one joins them, and heal them (Locphylax)."""
    check_merged(run, "locphylax")
    drawn = decoys(options.decoys, run.seed)
    planted, honest = twins(clean, drawn, options.samples, run.seed)
    run.note("decoys", [dataclasses.asdict(d) for d in drawn])
    tuned = partial(
        train,
        run=run,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        accumulation=1,
        max_length=options.max_length,
        rank=options.rank,
    )
    compromised = tuned(loaded, [*planted, *clean], epochs=options.epochs, label="planting decoys")
    return tuned(compromised, [*honest, *clean], epochs=options.recovery_epochs, label="healing decoys")
