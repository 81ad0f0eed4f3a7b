"""I-BAU: adversarial unlearning through the implicit hypergradient (arXiv:2110.03735).

A trigger is a perturbation that changes the class of any image. So find the worst one that all clean samples share and
learn to withstand it, over and over:

    min over weights w of  h(w) = CE(x + delta*(w), y),    delta*(w) = argmin over |delta| <= bound of  G(delta, w)
    G = -CE(x + delta, y) + 0.001 ||delta||^2

The perturbation moves as the weights do, and the outer gradient takes that into account. With a step of descent
P(delta, w) = delta - 0.1 dG/d delta, whose fixed point delta* is, the implicit function theorem gives

    dh/dw = dCE/dw + v dP/dw,    v = sum over k < K of  dCE/d delta (dP/d delta)^k

by products with the second derivatives alone.

As in the released code, the outer loss perturbs a hundredth of each batch only, which spares the accuracy, and the
products are taken on one batch. Other than there, images stay in the range of pixels, the perturbation stays in its
ball, and its ascent goes over all samples in steps of fixed length: the gradient of a confident model is tiny.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, autograd
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from detrojan.defenses.adversarial import require_images
from detrojan.fitting import Loss, fit, steps_in
from detrojan.metrics.margin import frozen
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats, pixel_range
from detrojan.options import option
from detrojan.registry import defense
from detrojan.types import Classifier, Rows, Run

PENALTY = 0.001
STEP = 0.1
REACH = 2.5
"""Length of the whole ascent, in radii of the ball: enough to get to its edge and along it."""


@dataclass(frozen=True)
class IbauOptions:
    """Options of I-BAU; the default takes as many passes as plain fine-tuning."""

    bound: float = option(
        0.18, "root mean square of the perturbation at most (share of the range)", minimum=0.0, maximum=1.0
    )
    ascent: int = option(10, "steps of finding it", minimum=1, maximum=1000)
    share: float = option(
        0.01, "share of a batch that is perturbed, one image at least", minimum=0.0, maximum=1.0
    )
    terms: int = option(5, "terms of the hypergradient (K)", minimum=0, maximum=1000)
    epochs: int = option(
        20, "passes over the clean samples, with a perturbation found for each", minimum=1, maximum=1000
    )
    learning_rate: float = option(1e-3, "peak learning rate of Adam", minimum=0.0, maximum=1.0)
    batch_size: int = option(128, "samples in a step", minimum=2)


PRESETS = {"default": {}, "paper": {"epochs": 5, "batch_size": 100}}


@defense("ibau", task="classifier", options=IbauOptions, paper="arXiv:2110.03735", presets=PRESETS)
def ibau(classifier: Classifier, clean: Rows, options: IbauOptions, run: Run) -> Classifier:
    """Unlearn the worst perturbation that all images share, through the implicit hypergradient (I-BAU)."""
    require_images(classifier, "ibau")
    with sdpa_kernel(SDPBackend.MATH):
        return fit(
            classifier,
            clean,
            run,
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            batch_size=options.batch_size,
            weight_decay=0.0,
            adam=True,
            loss=unlearning_loss(
                clean,
                bound=options.bound,
                ascent=options.ascent,
                share=options.share,
                terms=options.terms,
                batch_size=options.batch_size,
            ),
            freeze_statistics=True,
            label="unlearning perturbations",
        )


def unlearning_loss(
    clean: Rows, *, bound: float, ascent: int, share: float, terms: int, batch_size: int
) -> Loss:
    """Return the outer loss, with the hypergradient; the perturbation is found anew at the beginning of each pass."""
    bounds = pixel_range(clean.inputs["pixel_values"])
    every, step, delta = steps_in(len(clean), batch_size), 0, torch.empty(0)

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        nonlocal step, delta
        if step % every == 0:
            delta = universal(classifier, clean, bounds, bound, ascent, batch_size)
        step += 1
        count = max(1, round(share * len(batch)))
        return with_hypergradient(classifier, batch, delta, count, terms, bounds)

    return loss


def perturbed(
    classifier: Classifier, batch: Rows, delta: Tensor, bounds: tuple[float, float], count: int
) -> Tensor:
    """Return the mean cross-entropy of a batch whose first `count` images carry the perturbation."""
    images = as_floats(batch.inputs["pixel_values"].to(delta.device))
    changed = torch.cat([(images[:count] + delta).clamp(*bounds), images[count:]])
    return cross_entropy(logits(classifier, {"pixel_values": changed}), batch.labels.to(delta.device))


def with_hypergradient(
    classifier: Classifier, batch: Rows, delta: Tensor, count: int, terms: int, bounds: tuple[float, float]
) -> Tensor:
    """Return CE of a batch with `count` images perturbed, whose gradient is the hypergradient."""
    delta = delta.detach().requires_grad_()
    value = perturbed(classifier, batch, delta, bounds, count)
    (outer,) = autograd.grad(value, delta, retain_graph=True)
    inner = PENALTY * delta.square().sum() - perturbed(classifier, batch, delta, bounds, len(batch))
    (gradient,) = autograd.grad(inner, delta, create_graph=True)
    mapped = delta - STEP * gradient
    v = torch.zeros_like(delta)
    for _ in range(terms):
        (product,) = autograd.grad(mapped, delta, v, retain_graph=True)
        v = product + outer
    implicit = (mapped * v).sum()
    return value + implicit - implicit.detach()


def universal(
    classifier: Classifier,
    clean: Rows,
    bounds: tuple[float, float],
    bound: float,
    steps: int,
    batch_size: int,
) -> Tensor:
    """Return the perturbation (1, channels, height, width) that hurts all clean samples most."""
    device = next(classifier.model.parameters()).device
    delta = torch.zeros_like(as_floats(clean.inputs["pixel_values"][:1]), device=device)
    radius = bound * (bounds[1] - bounds[0]) * delta.numel() ** 0.5
    with frozen(classifier.model):
        for _ in range(steps):
            delta.requires_grad_()
            total = torch.zeros_like(delta)
            for index in torch.arange(len(clean)).split(batch_size):
                part = perturbed(classifier, clean.take(index), delta, bounds, len(index))
                total += autograd.grad(part, delta)[0] * len(index) / len(clean)
            uphill = total - 2 * PENALTY * delta.detach()
            length = REACH * radius / steps
            delta = delta.detach() + length * uphill / uphill.norm().clamp_min(1e-12)
            delta = delta * (radius / delta.norm().clamp_min(1e-12)).clamp(max=1)
    return delta.detach()
