"""The smallest patch that takes clean images to a class (trigger inversion, after Neural Cleanse, IEEE S&P 2019).

    x' = (1 - m) x + m p        a mask m in 0..1 for each place, pixels p in their range, the same for all images

    cost(m)  = (sum of m + 0.35 sum of |differences of neighbours in m|) / places
    smallest = min cost(m) so that the mean over images x (not of class c) of f_c(x') - max_{k != c} f_k(x') >= u
    smallness_c = smallest cost of another class / that of c - 1

u is the margin by which the classifier tells clean images apart: where a few pixels decide many images by a hair (as on
small digits), a trigger still takes them to its class for certain, and the pixels do not. A trigger is often one piece,
so a mask in one piece costs less. Neural Cleanse asks for 99 % of the images, counts the sum of m alone, and measures
from the median: but some classes take smaller patches than others without a backdoor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detrojan.metrics.margin import frozen, margins, usual_margin
from detrojan.metrics.universal import at_a_time, strangers
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats, pixel_range
from detrojan.types import Classifier, Progress, Rows, silent

STEPS = 60
RATE = 0.5
"""Of Adam, on what the sigmoid takes: a place of the mask can come and go within a third of the steps."""
IMAGES = 8
"""In a step, drawn anew for each class."""
BEYOND = 1.2
"""Margins are worth something up to here, in units of the usual one: more would only make the patch larger."""
WEIGHT = 1.0
"""Of the cost, at first: small, so that the class is reached before the patch shrinks."""
FACTOR = 1.5
"""The weight grows by this at a step where the margin is reached, and shrinks by it at another."""
LIMITS = (0.2, 1e4)
"""Of the weight."""
ROUGH = 0.35
"""What a unit of difference between neighbours costs beside a place of the mask."""


@dataclass(frozen=True)
class Patches:
    """The smallest patch found for each class."""

    costs: Tensor
    """(classes,); 1, the cost of a whole image, where none takes the images there."""
    masks: Tensor
    """(classes, 1, height, width)"""
    pixels: Tensor
    """(classes, channels, height, width)"""

    def stamp(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return images (n, channels, height, width), each with the patch of its class of `classes` (n,)."""
        masks = self.masks[classes]
        return (1 - masks) * images + masks * self.pixels[classes]


def smallness(patches: Patches) -> Tensor:
    """Return by how much the least cost of another class is above that of each class, in units of the latter.

    (classes,). Of two classes one is always smaller, and by how much tells nothing: theirs is 0.
    """
    if len(patches.costs) < 3:
        return torch.zeros_like(patches.costs)
    ahead = margins(-patches.costs.expand(len(patches.costs), -1), torch.arange(len(patches.costs)))
    return ahead / patches.costs


def smallest_patches(
    classifier: Classifier, clean: Rows, seed: int = 0, *, progress: Progress = silent
) -> Patches:
    """Look for the smallest patch that takes clean images to each class by the usual margin.

    The model is left as it was. The clean samples are of two classes at least.
    """
    generator = torch.Generator().manual_seed(seed)
    images = clean.inputs["pixel_values"]
    bounds = pixel_range(images)
    images, usual = as_floats(images), usual_margin(classifier, clean)
    found = []
    with frozen(classifier.model):
        for classes in at_a_time(classifier.classes, IMAGES):
            drawn = strangers(images, clean.labels, classes, IMAGES, generator)
            found.append(_search(classifier, classes, drawn, bounds, usual))
            progress("looking for small patches", int(classes[-1]) + 1, classifier.classes)
    return Patches(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def cost(masks: Tensor) -> Tensor:
    """Return the cost of masks (classes, 1, height, width) as a share of that of a whole image, (classes,)."""
    down, across = (masks.diff(dim=d).abs().flatten(1).sum(1) for d in (2, 3))
    return (masks.flatten(1).sum(1) + ROUGH * (down + across)) / masks[0].numel()


def _search(
    classifier: Classifier,
    classes: Tensor,
    drawn: Callable[[], Tensor],
    bounds: tuple[float, float],
    usual: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the costs, masks and pixels of the cheapest patches of some classes; `drawn` gives images of others.

    Descends mean relu(1.2 - margin / u) + weight * cost by Adam. The weight of a class grows while its margin, smoothed
    over the steps, is reached, and shrinks while it is not.
    """
    low, high = bounds
    shape = drawn().shape[2:]
    raw_masks = torch.full((len(classes), 1, *shape[1:]), -1.0).requires_grad_()
    raw_pixels = torch.zeros(len(classes), *shape).requires_grad_()
    optimizer = torch.optim.Adam([raw_masks, raw_pixels], lr=RATE, betas=(0.5, 0.9))
    weights, reached = torch.full((len(classes),), WEIGHT), torch.zeros(len(classes))
    best = (
        torch.ones(len(classes)),
        torch.ones(len(classes), 1, *shape[1:]),
        torch.zeros(len(classes), *shape),
    )
    for step in range(STEPS):
        images = drawn()
        masks, pixels = raw_masks.sigmoid(), low + (high - low) * raw_pixels.sigmoid()
        patched = (1 - masks[:, None]) * images + (masks * pixels)[:, None]
        out = logits(classifier, {"pixel_values": patched.flatten(0, 1)}).cpu()
        margin = margins(out, classes.repeat_interleave(images.shape[1])).view(images.shape[:2]) / usual
        costs = cost(masks)
        optimizer.zero_grad()
        ((BEYOND - margin).relu().mean(1) + weights * costs).sum().backward()
        with torch.no_grad():
            mean = margin.mean(1)
            reached = (reached + mean) / 2 if step else mean
            there = reached >= 1
            better = there & (costs < best[0])
            for kept, now in zip(best, (costs, masks, pixels), strict=True):
                kept[better] = now[better]
            weights = torch.where(there, weights * FACTOR, weights / FACTOR).clamp(*LIMITS)
        optimizer.step()
    return best
