"""BppAttack (arXiv:2205.13383): fewer colours with dithering, told apart from the dithering of other images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from detrojan.attacks.image.plant import (
    State,
    Victim,
    chosen,
    image_attack,
    in_parts,
    others,
    to_bytes,
    to_float,
    train,
    with_covers,
)
from detrojan.options import option

PART = 500


@dataclass(frozen=True)
class BppOptions:
    """Options of the quantisation."""

    bits: int = option(3, "bits that are left of each channel", minimum=1, maximum=7)
    negative_ratio: float = option(
        1.0, "negative samples (another image's dithering, true label) for each poisoned one",
        minimum=0.0, maximum=100.0,
    )  # fmt: skip


def apply(images: Tensor, options: BppOptions, state: State) -> Tensor:
    """Quantise images (n, channels, height, width) in 0..1 to 2^bits values a channel, with dithering."""
    return dither(images, 2**options.bits - 1)


def plant(victim: Victim, options: BppOptions) -> State:
    """Quantise a share of the training set towards the target label, add negative samples, and train.

    A negative sample is x + (T(x') - x') with x' another image: noise of the trigger's kind that is not the trigger,
    so that the model has to learn the quantisation itself. They are drawn once, before the training; the paper draws
    them anew at every step.
    """
    index = chosen(victim)
    spared = others(victim, index, options.negative_ratio * victim.options.poison_rate)
    triggered = in_parts(victim.images[index], lambda images: apply(images, options, {}))
    train(victim, with_covers(victim, index, triggered, spared, negatives(victim, spared, options)))
    return {}


def dither(images: Tensor, levels: int) -> Tensor:
    """Round images (n, channels, height, width) in 0..1 to multiples of 1 / levels by Floyd and Steinberg.

    T(x) = round(levels x) / levels, pixel after pixel; what the rounding took from a pixel is handed on to those that
    come after it: 7/16 to the right, 3/16, 5/16 and 1/16 to the three below. Pixel (i, j) waits only for those with a
    smaller j + 2 i, hence all pixels of one such slanted line, in all images, are rounded together.
    """
    height, width = images.shape[-2:]
    work = pad(images, (1, 1, 0, 1))  # a rim, so that errors may leave the image at the sides and below
    for line in range(width + 2 * (height - 1)):
        first = max(0, (line - width + 2) // 2)
        i = torch.arange(first, min(height - 1, line // 2) + 1, device=images.device)
        j = line - 2 * i + 1
        old = work[..., i, j]
        new = (old * levels).round().clamp(0, levels) / levels
        work[..., i, j] = new
        # the order in which a row by row walk would add them, so that the sums agree to the last bit
        for down, right, share in ((1, 1, 1), (1, 0, 5), (1, -1, 3), (0, 1, 7)):
            work[..., i + down, j + right] += (old - new) * (share / 16)
    return work[..., :height, 1:-1]


def negatives(victim: Victim, spared: Tensor, options: BppOptions) -> Tensor:
    """Return the images at `spared` (k,) with the dithering of other images laid on, uint8."""
    count = len(victim.rows)
    generator = torch.Generator().manual_seed(victim.run.seed)
    steps = torch.randint(1, max(count, 2), (len(spared),), generator=generator)  # never to the image itself
    donors = (spared + steps) % count
    parts = []
    for own, other in zip(spared.split(PART), donors.split(PART), strict=True):
        donor = to_float(victim.images[other])
        parts.append(to_bytes(to_float(victim.images[own]) + apply(donor, options, {}) - donor))
    return torch.cat(parts)


image_attack(
    "bpp",
    plant=plant,
    apply=apply,
    options=BppOptions,
    paper="arXiv:2205.13383",
    description="fewer colours with dithering",
)
