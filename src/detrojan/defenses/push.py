"""Images pushed towards a class: what a trigger does, in the small.

Two kinds of triggers are covered, those that change pixels and those that move them:

    x' = clip(x + d)            |d| <= size in every pixel, as a share of the range of pixels
    x' = x(place + field)       a smooth field, |field| <= shift of the edge at each of 5 x 5 points

A change of its own starts at random within its bounds and takes one step along the sign of d log p_t(x') / d(change).
Half of the images that are changed in pixels share one change for each class instead, as a trigger is shared; it
takes a shorter step with every batch, along the sign of the sum of their slopes (universal adversarial training,
arXiv:1811.11304). The label stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, autograd
from torch.nn.functional import cross_entropy, grid_sample, interpolate

from detrojan.metrics.margin import frozen
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats, pixel_range
from detrojan.types import Classifier, Rows

STEP = 0.25
"""Of the bound: how far the shared change goes with a batch."""
POINTS = 5
"""Along an edge of the field that moves pixels: coarse, so that neighbours move together."""


def push_towards(
    classifier: Classifier,
    batch: Rows,
    classes: list[int],
    common: Tensor,
    *,
    size: float,
    shift: float,
    share: float,
) -> tuple[Rows, int]:
    """Return the batch, its first `count` images pushed, and `count`.

    A share of the batch is pushed, each image towards one of `classes`, other than its own, drawn for it; half of them
    in their pixels and half in place (all in the one way when the other's bound is 0). The others, and those that have
    no class to be pushed to among them, follow unchanged. Labels and targets go with their images. `common` (classes,
    channels, height, width), the change that images share on their way to each class, is climbed in place.
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
    first = 0 if size <= 0 else count if shift <= 0 else count // 2
    parts = [scaled[count:]]
    with frozen(classifier.model):
        if first < count:
            parts.insert(0, _in_place(classifier, scaled[first:count], wanted[drawn[first:]], shift))
        if first:
            parts.insert(
                0, _in_pixels(classifier, scaled[:first], wanted, drawn[:first], common, size, bounds)
            )
    inputs = {**batch.inputs, "pixel_values": torch.cat(parts)}
    return Rows(inputs, batch.labels, batch.targets), count


def _in_pixels(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    drawn: Tensor,
    common: Tensor,
    size: float,
    bounds: tuple[float, float],
) -> Tensor:
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

    # The slope in the clipped image: a pixel at the end of its range would have none in the change.
    slope = _slope(classifier, lambda x: x, changed(change), classes[drawn])
    climbed = torch.zeros_like(common).index_add_(0, shared, slope[own:])
    common.add_(STEP * bound * climbed.sign()).clamp_(-bound, bound)
    stepped = (change[:own] + bound * slope[:own].sign()).clamp(-bound, bound)
    return changed(torch.cat([stepped, common[shared]]))


def _in_place(classifier: Classifier, images: Tensor, towards: Tensor, shift: float) -> Tensor:
    """Move the pixels of images (n, channels, height, width) smoothly, by up to `shift` of the edge."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    places = torch.stack((x, y), dim=-1).to(images)

    def moved(points: Tensor) -> Tensor:
        field = interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        grid = places + 2 * field.permute(0, 2, 3, 1)  # grid_sample's image is 2 wide
        return grid_sample(images, grid, padding_mode="border", align_corners=True)

    points = images.new_empty(len(images), 2, POINTS, POINTS).uniform_(-shift, shift)
    slope = _slope(classifier, moved, points, towards)
    return moved((points + shift * slope.sign()).clamp(-shift, shift))


def _slope(
    classifier: Classifier, apply: Callable[[Tensor], Tensor], change: Tensor, towards: Tensor
) -> Tensor:
    """Return d log p_t / d(change) of each image apply(change), in the shape of the change."""
    change = change.detach().requires_grad_()
    out = logits(classifier, {"pixel_values": apply(change)})
    (slope,) = autograd.grad(-cross_entropy(out, towards.to(out.device), reduction="sum"), change)
    return slope
