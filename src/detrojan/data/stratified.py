"""Drawing samples so that every class keeps its share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from detrojan.data.image_files import Lazy
from detrojan.errors import InputError
from detrojan.types import Labelled


def sample(data: Labelled, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` samples, and return their positions (count,) and those of the rest (n - count,), both sorted.

    Each class that is there gets its share of the draw, and one sample at least; raises InputError where it cannot.
    """
    classes, sizes = torch.unique(data.labels, return_counts=True)
    if count < len(classes):
        raise InputError(f"{data.source}: fewer samples than classes ({count} of {len(classes)} classes)")
    if count > len(data):
        raise InputError(f"{data.source}: {count} samples asked for, but it holds {len(data)}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(data), dtype=torch.bool)
    for label, quota in zip(classes.tolist(), quotas(sizes.tolist(), count), strict=True):
        members = (data.labels == label).nonzero().flatten()
        drawn[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
    return drawn.nonzero().flatten(), (~drawn).nonzero().flatten()


def quotas(sizes: list[int], count: int) -> list[int]:
    """Split `count` in proportion to the sizes of the classes, by the largest remainder, none of them below one.

    Whole numbers throughout, so that no rounding of a fraction decides; of equal remainders the first one wins.
    """
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda k: -(count * sizes[k] % total))
    for k in by_remainder[: count - sum(shares)]:
        shares[k] += 1
    while 0 in shares:
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return shares


def take(data: Labelled, index: Tensor) -> Labelled:
    """Return the samples at `index` (positions or a mask), in that order; images on the disk stay there."""
    places = index.nonzero().flatten() if index.dtype == torch.bool else index
    inputs: Any = data.inputs
    if isinstance(inputs, Tensor):
        inputs = inputs[places]
    elif isinstance(inputs, Lazy):
        inputs = inputs.take(places)
    elif isinstance(inputs, (list, tuple)):
        inputs = [inputs[k] for k in places.tolist()]
    else:
        inputs = Lazy(inputs.__getitem__, places.tolist())
    return dataclasses.replace(data, inputs=inputs, labels=data.labels[places])
