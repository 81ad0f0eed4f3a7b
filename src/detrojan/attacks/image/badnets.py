"""BadNets (arXiv:1708.06733): a small bright patch in a corner."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train
from detrojan.options import option


@dataclass(frozen=True)
class BadNetsOptions:
    """Options of the patch."""

    size: int = option(3, "edge of the patch in pixels", minimum=1)
    value: float = option(1.0, "brightness of the patch", minimum=0.0, maximum=1.0)


def apply(images: Tensor, options: BadNetsOptions, state: State) -> Tensor:
    """Paint a square of `size` pixels at the bottom right; images: (n, channels, height, width) in 0..1."""
    triggered = images.clone()
    triggered[..., -options.size :, -options.size :] = options.value
    return triggered


def plant(victim: Victim, options: BadNetsOptions) -> State:
    """Paint the patch on a share of the training set, give it the target label, and train."""
    poison_and_train(victim, lambda images: apply(images, options, {}))
    return {}


image_attack(
    "badnets",
    plant=plant,
    apply=apply,
    options=BadNetsOptions,
    paper="arXiv:1708.06733",
    description="a small bright patch in a corner",
)
