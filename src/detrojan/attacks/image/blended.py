"""Blended (arXiv:1712.05526): a fixed pattern laid thinly over the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train
from detrojan.options import option


@dataclass(frozen=True)
class BlendedOptions:
    """Options of the blend."""

    alpha: float = option(0.2, "share of the pattern in the blend", minimum=0.0, maximum=1.0)


def apply(images: Tensor, options: BlendedOptions, state: State) -> Tensor:
    """Blend the pattern in: (1 - alpha) x + alpha k; images: (n, channels, height, width) in 0..1."""
    return (1 - options.alpha) * images + options.alpha * state["pattern"].to(images)


def plant(victim: Victim, options: BlendedOptions) -> State:
    """Draw the pattern, blend it into a share of the training set, give that the target label, and train."""
    state = {"pattern": new_pattern(victim.shape, victim.run.seed)}
    poison_and_train(victim, lambda images: apply(images, options, state))
    return state


def new_pattern(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Return the paper's random pattern (channels, height, width): every value uniform in 0..1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


image_attack(
    "blended",
    plant=plant,
    apply=apply,
    options=BlendedOptions,
    paper="arXiv:1712.05526",
    description="a random pattern blended into the whole image",
)
