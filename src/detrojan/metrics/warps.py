"""How far one smooth warp, the same for all images, takes clean images to a class.

    r_c = max over |field| <= size of the mean over images x (not of class c) of f_c(x') - max_{k != c} f_k(x')
    x'  = x(place + field)      a field of 5 x 5 points, smooth between them

    lead_c = (r_c - max_{k != c} r_k) / mean over clean images of (highest - second highest logit)

What `metrics/universal.py` asks of one change of pixels, asked of one change of places: a trigger that warps (WaNet) is
such a field, and neither a small patch nor one change of pixels needs to bring it about.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, autograd
from torch.nn.functional import grid_sample, interpolate

from detrojan.metrics.margin import frozen, margins, usual_margin
from detrojan.metrics.universal import HELD, at_a_time, strangers
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats
from detrojan.types import Classifier, Progress, Rows, silent

SIZE = 0.04
"""Of the edge: how far a point of the field moves pixels at most."""
POINTS = 5
"""Along an edge of the field: coarse, so that neighbours move together."""
STEPS = 20
STEP = 0.25
"""Of the size, in the first step; later ones are shorter in proportion to the steps that are left."""
MOMENTUM = 0.8
IMAGES = 8
"""In a step, drawn anew for each class."""


@dataclass(frozen=True)
class Warps:
    """The warp found for each class."""

    leads: Tensor
    """(classes,); below 0 for all but the first."""
    fields: Tensor
    """Shares of the edge, (classes, 2, points, points)."""

    def stamp(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return images (n, channels, height, width), each moved by the warp of its class of `classes` (n,)."""
        return warped(images, self.fields[classes])


def warped(images: Tensor, fields: Tensor) -> Tensor:
    """Move the pixels of images (n, channels, height, width) by fields (n, 2, points, points), shares of the edge."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    places = torch.stack((x, y), dim=-1).to(images)
    shifts = interpolate(fields, size=(height, width), mode="bicubic", align_corners=True)
    grid = places + 2 * shifts.permute(0, 2, 3, 1)  # grid_sample's image is 2 wide
    return grid_sample(images, grid, padding_mode="border", align_corners=True)


def universal_warps(
    classifier: Classifier, clean: Rows, seed: int = 0, *, progress: Progress = silent
) -> Warps:
    """Look for the warp that takes clean images of the other classes furthest to each class.

    Climbs by signed steps with momentum. The model is left as it was. The clean samples are of two classes at least.
    """
    generator = torch.Generator().manual_seed(seed)
    images = as_floats(clean.inputs["pixel_values"])
    reached, found = torch.empty(classifier.classes), []
    with frozen(classifier.model):
        for classes in at_a_time(classifier.classes, IMAGES):
            drawn = strangers(images, clean.labels, classes, IMAGES, generator)
            fields = torch.zeros(len(classes), 2, POINTS, POINTS)
            velocity = torch.zeros_like(fields)
            for step in range(STEPS):
                fields.requires_grad_()
                moved = warped(drawn().flatten(0, 1), fields.repeat_interleave(IMAGES, dim=0))
                out = logits(classifier, {"pixel_values": moved})
                climbed = margins(out, classes.repeat_interleave(IMAGES).to(out.device)).sum()
                (slope,) = autograd.grad(climbed, fields)
                mean = slope.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
                velocity = MOMENTUM * velocity + slope / mean
                length = STEP * SIZE * (1 - step / STEPS)
                fields = (fields.detach() + length * velocity.sign()).clamp(-SIZE, SIZE)
            for at, c in enumerate(classes):
                held = strangers(images, clean.labels, classes[at : at + 1], HELD, generator)()[0]
                with torch.no_grad():
                    out = logits(
                        classifier, {"pixel_values": warped(held, fields[at].expand(HELD, -1, -1, -1))}
                    )
                reached[c] = margins(out, c.repeat(HELD).to(out.device)).mean().cpu()
            found.append(fields)
            progress("looking for warps that suit all images", int(classes[-1]) + 1, classifier.classes)
    ahead = margins(reached.expand(len(reached), -1), torch.arange(len(reached)))
    return Warps(ahead / usual_margin(classifier, clean), torch.cat(found))
