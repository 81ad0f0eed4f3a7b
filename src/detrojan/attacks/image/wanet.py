"""WaNet (arXiv:2102.10369): a smooth warp of the whole image, told apart from other warps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from detrojan.attacks.image.plant import (
    State,
    Victim,
    chosen,
    image_attack,
    in_parts,
    others,
    train,
    with_covers,
)
from detrojan.options import option


@dataclass(frozen=True)
class WaNetOptions:
    """Options of the warp."""

    grid: int = option(4, "points along an edge of the control grid (k)", minimum=2)
    strength: float = option(
        0.5, "how far the control points move (s): half as many pixels on average", minimum=0.0, maximum=100.0
    )
    cross_ratio: float = option(
        2.0, "noise samples (another warp, true label) for each poisoned one", minimum=0.0, maximum=100.0
    )


def apply(images: Tensor, options: WaNetOptions, state: State) -> Tensor:
    """Warp images (n, channels, height, width) in 0..1 by the field of the state."""
    return warp(images, state["field"].expand(len(images), -1, -1, -1))


def plant(victim: Victim, options: WaNetOptions) -> State:
    """Warp a share of the training set towards the target label, others at random with their own, and train.

    The noise samples keep the model from taking every warp for the trigger. Each is warped once, before the training;
    the paper draws their warps anew at every step.
    """
    generator = torch.Generator().manual_seed(victim.run.seed)
    height, width = victim.shape[1:]
    field = new_field(options, height, width, generator)
    index = chosen(victim)
    spared = others(victim, index, options.cross_ratio * victim.options.poison_rate)
    triggered = in_parts(victim.images[index], lambda images: apply(images, options, {"field": field}))
    noise = in_parts(victim.images[spared], lambda images: warp(images, noisy(field, len(images), generator)))
    train(victim, with_covers(victim, index, triggered, spared, noise))
    return {"field": field}


def new_field(options: WaNetOptions, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw where each pixel is taken from: (height, width, 2), x and y from -1 to 1 as grid_sample counts them.

    M = clip(identity + s upsample(P) / size) with P a k x k grid of shifts, uniform in -1..1 and scaled to a mean
    size of 1, and bicubic upsampling. As the image is 2 wide, s / size is half of s in pixels.
    """
    points = torch.rand(1, 2, options.grid, options.grid, generator=generator) * 2 - 1
    points = points / points.abs().mean()
    shifts = interpolate(points, size=(height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return (torch.stack((x, y), dim=-1) + options.strength * shifts / _size(height, width)).clamp(-1, 1)


def noisy(field: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` fields (count, height, width, 2), each shifted anew at every pixel by up to 1 / size."""
    noise = torch.rand(count, *field.shape, generator=generator) * 2 - 1
    return (field + noise / _size(*field.shape[:2])).clamp(-1, 1)


def warp(images: Tensor, fields: Tensor) -> Tensor:
    """Sample images (n, channels, height, width) where the fields (n, height, width, 2) point, bilinearly."""
    return grid_sample(images, fields.to(images), mode="bilinear", align_corners=True).clamp(0, 1)


def _size(height: int, width: int) -> Tensor:
    return torch.tensor([width, height])


image_attack(
    "wanet",
    plant=plant,
    apply=apply,
    options=WaNetOptions,
    paper="arXiv:2102.10369",
    description="a smooth warp of the whole image, told apart from other warps",
)
