"""How far one change of pixels, the same for all images, takes clean images to a class.

    r_c = max over |d| <= size of the mean over images x (not of class c) of f_c(x + d) - max_{k != c} f_k(x + d)

    lead_c = (r_c - max_{k != c} r_k) / mean over clean images of (highest - second highest logit)

A trigger is such a change, whatever its image is: a backdoored network has a change that takes every image to the
class that the trigger draws, much further than any change takes them to another class. It is what universal adversarial
perturbations (arXiv:1610.08401) look for, here in the small and for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, autograd

from detrojan.metrics.margin import frozen, margins, usual_margin
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats, pixel_range
from detrojan.types import Classifier, Progress, Rows, silent

SIZE = 0.1
"""Of the range of pixels, in each pixel."""
STEPS = 20
STEP = 0.25
"""Of the size, in one step: every pixel can get from one end to the other and half of the way back in eight."""
MOMENTUM = 0.8
IMAGES = 40
"""In a step, drawn anew for each class."""
IMAGES_AT_A_TIME = 512
HELD = 200
"""Images that the change is judged on at the end."""


def universal_margins(
    classifier: Classifier, clean: Rows, seed: int = 0, *, size: float, progress: Progress = silent
) -> Tensor:
    """Return the mean margin that one change of pixels reaches for each class, (classes,), on the CPU.

    The change is at most `size` of the range of pixels in each pixel; it is climbed by 20 signed steps with momentum
    on clean images of other classes. The model is left as it was. The clean samples are of two classes at least.
    """
    generator = torch.Generator().manual_seed(seed)
    images = clean.inputs["pixel_values"]
    low, high = pixel_range(images)
    images, bound = as_floats(images), size * (high - low)
    found = torch.empty(classifier.classes)
    with frozen(classifier.model):
        for classes in at_a_time(classifier.classes, IMAGES):
            drawn = strangers(images, clean.labels, classes, IMAGES, generator)
            change = torch.zeros(len(classes), 1, *images.shape[1:])
            velocity = torch.zeros_like(change)
            for _ in range(STEPS):
                # The slope in the clipped image: a pixel at the end of its range would have none in the change.
                moved = (drawn() + change).clamp(low, high).requires_grad_()
                out = _answers(classifier, moved)
                reached = margins(out, classes.repeat_interleave(IMAGES).to(out.device)).sum()
                gradient = autograd.grad(reached, moved)[0].sum(dim=1, keepdim=True)
                mean = gradient.abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-12)
                velocity = MOMENTUM * velocity + gradient / mean
                change = (change + STEP * bound * velocity.sign()).clamp(-bound, bound)
            for at, c in enumerate(classes):
                with torch.no_grad():
                    held = strangers(images, clean.labels, classes[at : at + 1], HELD, generator)()
                    out = _answers(classifier, (held + change[at]).clamp(low, high))
                found[c] = margins(out, c.repeat(HELD).to(out.device)).mean().cpu()
            progress("looking for changes that suit all images", int(classes[-1]) + 1, classifier.classes)
    return found


def leads(classifier: Classifier, clean: Rows, seed: int = 0, *, progress: Progress = silent) -> Tensor:
    """Return how far each class is ahead of the next one, (classes,); below 0 for all but the first.

    In units of the margin by which the classifier tells clean samples apart, so that networks can be compared.
    """
    reached = universal_margins(classifier, clean, seed, size=SIZE, progress=progress)
    usual = usual_margin(classifier, clean)
    return margins(reached.expand(len(reached), -1), torch.arange(len(reached))) / usual


def at_a_time(classes: int, images: int) -> Iterator[Tensor]:
    """Yield the classes in parts that take at most 512 images at once, `images` for each class."""
    yield from torch.arange(classes).split(max(1, IMAGES_AT_A_TIME // images))


def strangers(
    images: Tensor, labels: Tensor, classes: Tensor, count: int, generator: torch.Generator
) -> Callable[[], Tensor]:
    """Return what draws `count` images that are not of each class, (classes, count, channels, height, width)."""
    others = [(labels != c).nonzero().flatten() for c in classes]

    def draw() -> Tensor:
        picks = [o[torch.randint(len(o), (count,), generator=generator)] for o in others]
        return images[torch.stack(picks)]

    return draw


def _answers(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the logits of images (classes, count, channels, height, width), (classes x count, classes)."""
    return logits(classifier, {"pixel_values": images.flatten(0, 1)})
