"""Images pushed towards a class: what a trigger does, in the small.

Two kinds of triggers are covered, those that change pixels and those that move them:

    x' = clip(x + d)            |d| <= size in every pixel, as a share of the range of pixels
    x' = x(place + field)       a smooth field, |field| <= shift of the edge at each of 5 x 5 points

A change of its own starts at random within its bounds and takes one step along the sign of d log p_t(x') / d(change).
Half of the images that are changed in pixels share one change for each class instead, as a trigger is shared; it
takes a shorter step with every batch, along the sign of the sum of their slopes (universal adversarial training,
arXiv:1811.11304). The label stays.

Where a small patch (`metrics/inversion.py`) or a warp (`metrics/warps.py`) was found that takes images to a class, half
of those that would be moved are stamped with it instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, autograd
from torch.nn.functional import cross_entropy

from detrojan.metrics.margin import frozen
from detrojan.metrics.warps import POINTS, warped
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats, pixel_range
from detrojan.types import Classifier, Rows

Stamp = Callable[[Tensor, Tensor], Tensor]
"""(images (n, channels, height, width), their classes (n,)) -> the images with what takes them there: patch or warp."""
STEP = 0.25
"""Of the bound: how far the shared change goes with a batch."""


def push_towards(
    classifier: Classifier,
    batch: Rows,
    classes: list[int],
    common: Tensor,
    *,
    size: float,
    shift: float,
    share: float,
    stamp: Stamp | None = None,
) -> tuple[Rows, int]:
    """Return the batch, its first `count` images pushed, and `count`.

    A share of the batch is pushed, each image towards one of `classes`, other than its own, drawn for it; half of them
    in their pixels and half in place (all in the one way when the other's bound is 0). The others, and those that have
    no class to be pushed to among them, follow unchanged. Labels and targets go with their images. `common` (classes,
    channels, height, width), the change that images share on their way to each class, is climbed in place. With `stamp`
    half of the images that would be moved get a patch of their class instead.
    """
    wanted = torch.tensor(classes)
    open_to = (batch.labels.unsqueeze(1) != wanted).float()  # (n, classes): 1 where an image may be pushed to
    able = open_to.sum(dim=1) > 0
    order = torch.cat([able.nonzero().flatten(), (~able).nonzero().flatten()])
    batch = batch.take(order)
    count = min(max(1, round(share * len(batch))), int(able.sum()))
    images = batch.inputs["pixel_values"]
    scaled, bounds = as_floats(images), pixel_range(images)
    drawn = torch.multinomial(open_to[order[:count]], 1).flatten() if count else order[:0]
    first = 0 if size <= 0 else count if shift <= 0 and stamp is None else count // 2
    last = count if stamp is None else first if shift <= 0 else (first + count) // 2  # from here on stamped
    towards = wanted[drawn]
    ways: list[_Way] = []
    if first:
        ways.append(_in_pixels(scaled[:first], wanted, drawn[:first], common, size, bounds))
    if first < last:
        ways.append(_in_place(scaled[first:last], towards[first:last], shift))
    with frozen(classifier.model):
        parts = [way.finish(slope) for way, slope in zip(ways, _slopes(classifier, ways), strict=True)]
    if stamp and last < count:
        parts.append(stamp(scaled[last:count], towards[last:]))
    inputs = {**batch.inputs, "pixel_values": torch.cat([*parts, scaled[count:]])}
    return Rows(inputs, batch.labels, batch.targets), count


@dataclass(frozen=True)
class _Way:
    """A way to change images: `apply` makes them of a change, `finish` of the slope in it."""

    change: Tensor
    towards: Tensor
    """The class that each image is pushed to, (n,)."""
    apply: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]


def _in_pixels(
    images: Tensor,
    classes: Tensor,
    drawn: Tensor,
    common: Tensor,
    size: float,
    bounds: tuple[float, float],
) -> _Way:
    """Change every pixel of images (n, channels, height, width) by up to `size` of the range of `bounds`.

    drawn: (n,), the place in `classes` of the class that each image is pushed to. The first half of the images gets
    changes of their own, the other half those of `common`.
    """
    bound = size * (bounds[1] - bounds[0])
    own = (len(images) + 1) // 2
    shared = drawn[own:]
    change = torch.cat([torch.empty_like(images[:own]).uniform_(-bound, bound), common[shared]])

    def changed(d: Tensor) -> Tensor:
        return (images + d).clamp(*bounds)

    def finish(slope: Tensor) -> Tensor:
        climbed = torch.zeros_like(common).index_add_(0, shared, slope[own:])
        common.add_(STEP * bound * climbed.sign()).clamp_(-bound, bound)
        stepped = (change[:own] + bound * slope[:own].sign()).clamp(-bound, bound)
        return changed(torch.cat([stepped, common[shared]]))

    # The slope in the clipped image: a pixel at the end of its range would have none in the change.
    return _Way(changed(change), classes[drawn], lambda x: x, finish)


def _in_place(images: Tensor, towards: Tensor, shift: float) -> _Way:
    """Move the pixels of images (n, channels, height, width) smoothly, by up to `shift` of the edge."""

    def moved(points: Tensor) -> Tensor:
        return warped(images, points)

    points = images.new_empty(len(images), 2, POINTS, POINTS).uniform_(-shift, shift)
    return _Way(
        points, towards, moved, lambda slope: moved((points + shift * slope.sign()).clamp(-shift, shift))
    )


def _slopes(classifier: Classifier, ways: list[_Way]) -> tuple[Tensor, ...]:
    """Return d log p_t / d(change) of each image, in the shape of the changes; all ways share one pass."""
    if not ways:
        return ()
    changes = [way.change.detach().requires_grad_() for way in ways]
    images = torch.cat([way.apply(c) for way, c in zip(ways, changes, strict=True)])
    out = logits(classifier, {"pixel_values": images})
    towards = torch.cat([way.towards for way in ways]).to(out.device)
    return autograd.grad(-cross_entropy(out, towards, reduction="sum"), changes)
