"""LF (arXiv:2104.03413): a smooth perturbation without high frequencies, found on a surrogate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train, relabel, to_float
from detrojan.fitting import batches, fit
from detrojan.models.classifier import logits
from detrojan.models.preact_resnet import PreActResNet
from detrojan.options import option
from detrojan.training import isolated_rng
from detrojan.types import Classifier, Rows

LEARNING_RATE = 0.1
BATCH_SIZE = 64
WIDTH = 8
"""Channels of the surrogate's first stage: half of the zoo's, which takes half the time."""
STEP = 0.1
"""Length of a gradient step, as a share of the bound."""


@dataclass(frozen=True)
class LowFrequencyOptions:
    """Options of the perturbation and of the search for it.

    With the default bound the pattern spans 0.2 from end to end, as in the code of the paper's authors.
    """

    bound: float = option(0.1, "largest change of a pixel, of a brightness of 1", minimum=0.0, maximum=1.0)
    kept: float = option(
        0.25, "share of the frequencies that are kept, the lowest of each axis", minimum=0.0, maximum=1.0
    )
    steps: int = option(40, "gradient steps of the search", minimum=1)
    samples: int = option(2000, "training images for the surrogate and the search", minimum=2)
    surrogate_epochs: int = option(3, "passes of the surrogate over them", minimum=1, maximum=1000)


def apply(images: Tensor, options: LowFrequencyOptions, state: State) -> Tensor:
    """Add the pattern to images (n, channels, height, width) in 0..1, and clip."""
    return (images + state["pattern"].to(images)).clamp(0, 1)


def plant(victim: Victim, options: LowFrequencyOptions) -> State:
    """Find the pattern on a surrogate, add it to a share of the training set with the target label, and train."""
    generator = torch.Generator().manual_seed(victim.run.seed)
    rows = victim.rows.take(torch.randperm(len(victim.rows), generator=generator)[: options.samples])
    state = {"pattern": search(victim, train_surrogate(victim, rows, options), rows, options)}
    poison_and_train(victim, lambda images: apply(images, options, state))
    return state


def train_surrogate(victim: Victim, rows: Rows, options: LowFrequencyOptions) -> Classifier:
    """Train a small network (the zoo's preact-resnet8) on clean rows, fed as the victim's model is."""
    device = next(victim.classifier.model.parameters()).device
    with isolated_rng(victim.run.seed):
        # built here and not by the zoo, which asks for square images; this network takes any
        network = PreActResNet(victim.classifier.classes, victim.shape[0], WIDTH, (1, 1, 1)).to(device)
    surrogate = victim.classifier.replace(model=network, head="linear", source="surrogate")
    return fit(
        surrogate,
        rows,
        victim.run,
        learning_rate=LEARNING_RATE,
        epochs=options.surrogate_epochs,
        batch_size=BATCH_SIZE,
        label="training the surrogate",
    )


def search(victim: Victim, surrogate: Classifier, rows: Rows, options: LowFrequencyOptions) -> Tensor:
    """Return a pattern (channels, height, width) that draws all rows to the label of the trigger at once.

    min over d of the mean CE(f(clip(x + d)), t), where d holds no high frequencies and |d| <= bound. Each step goes
    down the signs of the gradient and is projected on the bound, then on the low frequencies, where the paper blurs,
    which only dampens the high ones. What exceeds the bound after that is scaled down: unlike clipping, that adds no
    high frequencies.
    """
    surrogate.model.requires_grad_(False)
    device = next(surrogate.model.parameters()).device
    drawn = Rows(rows.inputs, relabel(rows.labels, victim.options, victim.classifier.classes))
    pattern = torch.zeros(victim.shape, device=device)
    parts = islice(batches(drawn, BATCH_SIZE, options.steps, victim.run.seed), options.steps)
    for step, batch in enumerate(parts, start=1):
        pattern.requires_grad_()
        images = to_float(batch.inputs["pixel_values"]).to(device)
        out = logits(surrogate, {"pixel_values": apply(images, options, {"pattern": pattern})})
        (slope,) = torch.autograd.grad(cross_entropy(out, batch.labels.to(device)), pattern)
        stepped = pattern.detach() - STEP * options.bound * slope.sign()
        pattern = low_pass(stepped.clamp(-options.bound, options.bound), options.kept)
        pattern = pattern * (options.bound / pattern.abs().max().clamp(min=1e-12)).clamp(max=1)
        victim.run.progress("searching the smooth trigger", step, options.steps)
    return pattern.cpu()


def low_pass(pattern: Tensor, kept: float) -> Tensor:
    """Project (..., height, width) on the lowest `kept` share of the cosine frequencies (DCT-II) of each axis."""
    height, width = (cosines(size, max(1, round(kept * size))).to(pattern) for size in pattern.shape[-2:])
    return height.T @ (height @ pattern @ width.T) @ width


def cosines(size: int, count: int) -> Tensor:
    """Return the first `count` rows of the orthonormal DCT-II of `size` points, (count, size)."""
    k, x = torch.arange(count).unsqueeze(1), torch.arange(size)
    rows = torch.cos(math.pi / size * (x + 0.5) * k) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


image_attack(
    "lf",
    plant=plant,
    apply=apply,
    options=LowFrequencyOptions,
    paper="arXiv:2104.03413",
    description="a smooth perturbation without high frequencies, found on a surrogate",
)
