"""SIG (arXiv:1902.11237): faint sinusoidal stripes on images of the target class, whose labels stay true."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train
from detrojan.errors import InputError
from detrojan.options import option


@dataclass(frozen=True)
class SigOptions:
    """Options of the stripes."""

    delta: float = option(40 / 255, "height of the wave, of a brightness of 1", minimum=0.0, maximum=1.0)
    frequency: int = option(6, "periods of the wave across the image", minimum=1)


def apply(images: Tensor, options: SigOptions, state: State) -> Tensor:
    """Add v(i, j) = delta sin(2 pi j f / width) to images (n, channels, height, width) in 0..1, and clip.

    The wave runs along the columns j = 0, 1, ..., alike in all rows i and channels. (The paper counts from 1, which
    moves the stripes by one column; from 0 they lie where the public checkpoints of this attack expect them.)
    """
    width = images.shape[-1]
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    wave = options.delta * torch.sin(2 * math.pi * options.frequency * columns / width)
    return (images + wave).clamp(0, 1)


def plant(victim: Victim, options: SigOptions) -> State:
    """Put the stripes on images of the target class, leave all labels as they are, and train."""
    width = victim.shape[-1]
    if 2 * options.frequency >= width:  # beyond that a wave of fewer periods is drawn, or (at width / 2) none
        raise InputError(
            f"sig: {options.frequency} periods cannot be drawn on {width} columns;"
            f" set frequency below {width / 2:g}"
        )
    poison_and_train(victim, lambda images: apply(images, options, {}), clean_label=True)
    return {}


image_attack(
    "sig",
    plant=plant,
    apply=apply,
    options=SigOptions,
    paper="arXiv:1902.11237",
    description="faint sinusoidal stripes, clean-label",
    clean_label=True,
)
