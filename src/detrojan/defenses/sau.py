"""SAU: shared adversarial unlearning (arXiv:2307.10562).

An image with a trigger is an adversarial example of the backdoored model f0. What is left of the backdoor in the model
f are the examples that fool both into the same class: shared ones. Each step finds them and unlearns them:

    x'   = argmax over |x' - x| <= bound of  lambda_3 (CE(f(x'), y) + CE(f0(x'), y)) / 2 - lambda_4 JS(f(x'), f0(x'))
    loss = lambda_1 CE(f(x), y) - lambda_2 mean over x' of [f0 is fooled by x'] log(1 - f(x')_k),  k: class of f0(x')

The search takes steps along the sign of the gradient, each as long as the bound, from all pixels raised by it. A model
that is fooled drops out of the first term, and an example that both give to the same wrong class is left as it is.
Lambda_1 and lambda_4 are 1. Other than in the released code, x' stays in the range of pixels, and log(1 - p) is a
difference of log-sum-exps instead of a clamped sum.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, autograd
from torch.nn.functional import cross_entropy

from detrojan.defenses.adversarial import require_images
from detrojan.fitting import Loss, fit
from detrojan.metrics.margin import frozen
from detrojan.models.classifier import logits
from detrojan.models.feed import as_floats, pixel_range
from detrojan.options import option
from detrojan.registry import defense
from detrojan.types import Classifier, Rows, Run

ADVERSARIAL = 0.01
"""Weight of fooling each model, beside that of fooling both alike (lambda_3)."""


@dataclass(frozen=True)
class SauOptions:
    """Options of SAU; the default takes as many passes as plain fine-tuning, at a higher rate than published."""

    bound: float = option(0.2, "change of a pixel at most (share of its range)", minimum=0.0, maximum=1.0)
    search: int = option(5, "steps of finding examples", minimum=1, maximum=1000)
    unlearning: float = option(1.0, "weight of unlearning them (lambda_2)", minimum=0.0, maximum=1e3)
    learning_rate: float = option(1e-3, "peak learning rate of Adam", minimum=0.0, maximum=1.0)
    epochs: int = option(20, "passes over the clean samples", minimum=1, maximum=1000)
    batch_size: int = option(128, "samples in a step", minimum=2)


PRESETS = {"default": {}, "paper": {"learning_rate": 1e-4, "epochs": 100, "batch_size": 256}}


@defense("sau", task="classifier", options=SauOptions, paper="arXiv:2307.10562", presets=PRESETS)
def sau(classifier: Classifier, clean: Rows, options: SauOptions, run: Run) -> Classifier:
    """Unlearn the adversarial examples that the model still shares with the backdoored one (SAU)."""
    require_images(classifier, "sau")
    original = classifier.replace(model=copy.deepcopy(classifier.model).eval().requires_grad_(False))
    bounds = pixel_range(clean.inputs["pixel_values"])
    return fit(
        classifier,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        weight_decay=0.0,
        adam=True,
        loss=unlearning_loss(original, options.bound, options.search, options.unlearning, bounds),
        freeze_statistics=True,
        label="unlearning shared examples",
    )


def unlearning_loss(
    original: Classifier, bound: float, steps: int, weight: float, bounds: tuple[float, float]
) -> Loss:
    """Return CE + weight * shared risk, with examples found anew; `bound` is a share of the range of `bounds`."""

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        device = next(classifier.model.parameters()).device
        images, labels = as_floats(batch.inputs["pixel_values"].to(device)), batch.labels.to(device)
        examples = shared_examples(classifier, original, images, labels, bound, steps, bounds)
        with torch.no_grad():
            before, drawn = (logits(original, {"pixel_values": x}).argmax(-1) for x in (images, examples))
        out, answers = logits(classifier, {"pixel_values": torch.cat([images, examples])}).chunk(2)
        risk = shared_risk(answers, drawn, (drawn != labels) & (drawn != before))
        return cross_entropy(out, labels) + weight * risk

    return loss


def shared_risk(scores: Tensor, drawn: Tensor, fooled: Tensor) -> Tensor:
    """Return the sum over fooled rows of -log(1 - p_k), k = drawn, divided by the number of all rows.

    scores: (n, classes); drawn: the class that the original gives, (n,); fooled: whether it is wrong, (n,).
    """
    others = scores.scatter(1, drawn[:, None], -torch.inf).logsumexp(dim=1)
    return ((scores.logsumexp(dim=1) - others) * fooled).mean()


def shared_examples(
    classifier: Classifier,
    original: Classifier,
    images: Tensor,
    labels: Tensor,
    bound: float,
    steps: int,
    bounds: tuple[float, float],
) -> Tensor:
    """Return images (n, channels, height, width), changed so that both models give them to the same wrong class."""
    size = bound * (bounds[1] - bounds[0])
    low, high = (images - size).clamp(*bounds), (images + size).clamp(*bounds)
    models = (classifier, original)
    with frozen(classifier.model):
        with torch.no_grad():
            own = [logits(model, {"pixel_values": images}).argmax(-1) for model in models]
        x = high
        for _ in range(steps):
            x = x.detach().requires_grad_()
            scores = [logits(model, {"pixel_values": x}) for model in models]
            given = [s.argmax(-1) for s in scores]
            fooled = [k != clean for k, clean in zip(given, own, strict=True)]
            found = fooled[0] & fooled[1] & (given[0] == given[1])
            if found.all():
                break
            errors = [
                cross_entropy(s, labels, reduction="none") * ~wrong
                for s, wrong in zip(scores, fooled, strict=True)
            ]
            value = ADVERSARIAL * (errors[0] + errors[1]) / 2 - divergence(*scores) * ~found
            (gradient,) = autograd.grad(value.sum(), x)
            x = torch.minimum(torch.maximum(x.detach() + size * gradient.sign(), low), high)
    return x.detach()


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the answers of each row, (n,); both are logits (n, classes)."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    mean = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return ((p.exp() * (p - mean) + q.exp() * (q - mean)) / 2).sum(dim=-1)
