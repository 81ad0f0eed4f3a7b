"""ULRL: unlearn, then relearn (arXiv:2405.14781), and where we go beyond it.

A backdoor ties one class to a few features that clean samples hardly use. So when a classifier is made to *unlearn*
its clean samples, the row of that class in the last linear layer moves more than the others. As published (presets
`paper-...`):

1. unlearn:  gradient ascent on the cross-entropy of clean samples, on a copy
2. locate:   change of row k = sum |w_k' - w_k|; suspicious when its modified z-score
             (x - median) / (1.4826 MAD) is above 3.5
3. forget:   suspicious rows of the original are drawn anew, uniform in +-sqrt(2 / fan_in), bias 0
4. relearn:  L = CE + alpha * sum over suspicious rows of cos(w, w_original)

The default departs in two steps, each an option. Locate: unlearning is gentler and repeated, and a class must stand out
by its largest margin too (`locate=both`). Relearn: a share of every batch is pushed towards the suspicious class by a
small step against the input and keeps its true label (`push`), so that triggered inputs are recovered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from detrojan.fitting import Change, Loss, classification_loss, fit
from detrojan.metrics.margin import frozen, max_margins
from detrojan.metrics.unlearning import head_of, row_changes, z_scores
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.registry import defense
from detrojan.types import Classifier, Rows, Run

MEASURES = {
    "both": "z-score by unlearning and by margin (geometric mean)",
    "margin": "largest margin",
    "unlearn": "share of the way by unlearning",
}


@dataclass(frozen=True)
class UlrlOptions:
    """Options of ULRL. The presets `paper-...` hold the published method with its values for each data set."""

    locate: str = option(
        "both",
        "how the backdoored class is found: unlearn as published, margin, or both",
        choices=tuple(MEASURES),
    )
    unlearn_rate: float = option(0.003, "learning rate of unlearning", minimum=0.0, maximum=10.0)
    unlearn_epochs: int = option(20, "passes of unlearning at most", minimum=1, maximum=1000)
    unlearn_batch: int = option(16, "samples in a step of unlearning", minimum=2)
    unlearn_stop: float = option(0.2, "unlearning ends at this accuracy", minimum=0.0, maximum=1.0)
    repeats: int = option(3, "times that unlearning is repeated, in other orders", minimum=1, maximum=100)
    threshold: float = option(4.5, "score above which a row is suspicious", minimum=0.0)
    most: int = option(2, "suspicious rows at most", minimum=0)
    alpha: float = option(0.7, "weight of staying away from the old rows", minimum=0.0, maximum=100.0)
    push: float = option(0.1, "size of the push towards the suspicious class (pixels in 0..1)", minimum=0.0)
    pushed: float = option(0.25, "share of a batch that is pushed", minimum=0.0, maximum=1.0)
    learning_rate: float = option(0.005, "peak learning rate of relearning", minimum=0.0, maximum=10.0)
    epochs: int = option(20, "passes of relearning", minimum=1, maximum=1000)
    batch_size: int = option(32, "samples in a step", minimum=2)


PAPER: dict[str, Any] = {
    "locate": "unlearn",
    "unlearn_rate": 0.01,
    "unlearn_batch": 128,
    "repeats": 1,
    "threshold": 3.5,
    "push": 0.0,
    "batch_size": 128,
}
SLOW = {"alpha": 0.001, "learning_rate": 0.001}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper-cifar10": PAPER,
    "paper-gtsrb": {**PAPER, **SLOW},
    "paper-cifar100": {**PAPER, **SLOW},
    "paper-tiny": {**PAPER, **SLOW},
}


@defense("ulrl", task="classifier", options=UlrlOptions, paper="arXiv:2405.14781", presets=PRESETS)
def ulrl(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Classifier:
    """Unlearn clean samples to find the backdoored class, draw its row anew, and relearn (ULRL)."""
    found = locate(classifier, clean, options, run)
    rows = list(found.suspicious)
    for what, data in (
        ("measure", found.measure),
        ("evidence", found.evidence.tolist()),
        ("scores", found.scores.tolist()),
        ("suspicious", rows),
        ("threshold", options.threshold),
        ("classes", list(classifier.names)),
    ):
        run.note(what, data)
    original = head_of(classifier).weight.detach().clone()
    reinitialise(head_of(classifier), rows, run.seed)
    pushes = rows and options.push > 0 and classifier.task == "image"
    return fit(
        classifier,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        loss=relearning_loss(original, rows, options.alpha),
        change=push_towards(classifier, rows, options.push, options.pushed) if pushes else None,
        label="relearning",
    )


@dataclass(frozen=True)
class Finding:
    """What speaks for a backdoor in each class, and which classes are suspicious, the most suspicious first."""

    measure: str
    evidence: Tensor
    """(classes,)"""
    scores: Tensor
    """What the threshold is held against, (classes,)."""
    suspicious: tuple[int, ...]


def locate(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Finding:
    """Find the classes that a backdoor seems to draw."""
    found: list[Tensor] = []
    if options.locate != "margin":
        found.append(
            row_changes(
                classifier,
                clean,
                run,
                learning_rate=options.unlearn_rate,
                epochs=options.unlearn_epochs,
                batch_size=options.unlearn_batch,
                stop=options.unlearn_stop,
                repeats=options.repeats,
            )
        )
    if options.locate != "unlearn":
        found.append(max_margins(classifier, run.seed, bounds=_bounds(clean), progress=run.progress))
    scores = geometric_mean([z_scores(each) for each in found]) if len(found) > 1 else z_scores(found[0])
    rows = suspicious(scores, options.threshold, options.most)
    return Finding(MEASURES[options.locate], scores if len(found) > 1 else found[0], scores, tuple(rows))


def geometric_mean(scores: list[Tensor]) -> Tensor:
    """Return the geometric mean of z-scores, each (classes,), of which none counts below 0: all must stand out."""
    positive = torch.stack(scores).clamp(min=0, max=1e6)  # where MAD is 0 a score is infinite
    return positive.prod(dim=0) ** (1 / len(scores))


def _bounds(clean: Rows) -> tuple[float, float]:
    """Return the range of images: 0..1, or what the clean samples of a plain module span."""
    images = clean.inputs.get("pixel_values")
    if images is None or not images.is_floating_point():
        return 0.0, 1.0
    return float(images.min()), float(images.max())


def suspicious(scores: Tensor, threshold: float, most: int) -> list[int]:
    """Return the classes whose score is above the threshold, the highest first, `most` of them at most."""
    order = scores.argsort(descending=True).tolist()
    return [k for k in order if scores[k] > threshold][:most]


def reinitialise(head: nn.Linear, rows: list[int], seed: int) -> None:
    """Draw rows of the head anew, uniform in +-sqrt(2 / fan_in), and set their biases to 0."""
    bound = math.sqrt(2 / head.in_features)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k in rows:
            drawn = (torch.rand(head.in_features, generator=generator) * 2 - 1) * bound
            head.weight[k] = drawn.to(head.weight)
            if head.bias is not None:
                head.bias[k] = 0


def likeness(head: nn.Linear, original: Tensor, rows: list[int]) -> Tensor:
    """Return the sum over rows of cos(w, w_original)."""
    if not rows:
        return head.weight.new_zeros(())
    return cosine_similarity(head.weight[rows], original[rows], dim=1).sum()


def relearning_loss(original: Tensor, rows: list[int], alpha: float) -> Loss:
    """Return CE + alpha * sum over rows of cos(w, w_original); original: (classes, features)."""

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        return classification_loss(classifier, batch) + alpha * likeness(head_of(classifier), original, rows)

    return loss


def push_towards(classifier: Classifier, rows: list[int], size: float, share: float) -> Change:
    """Return a change of batches: the first `share` of the images takes one step towards a suspicious class.

    x' = clip(x + size * sign(d log p_t(x + u) / dx)), u uniform in +-size, t drawn from the suspicious rows; the
    label stays. This is what a trigger does in the small, so relearning unties the class from it.
    """

    def change(batch: Rows) -> Rows:
        images = batch.inputs["pixel_values"]
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        count = max(1, round(share * len(batch)))
        low, high = (0.0, 1.0) if images.dtype == torch.uint8 else (float(images.min()), float(images.max()))
        targets = torch.tensor(rows)[torch.randint(len(rows), (count,))]
        with frozen(classifier.model):
            start = scaled[:count] + (torch.rand_like(scaled[:count]) * 2 - 1) * size
            start = start.clamp(low, high).requires_grad_()
            out = logits(classifier, {"pixel_values": start})
            (gradient,) = autograd.grad(-cross_entropy(out, targets.to(out.device), reduction="sum"), start)
        moved = (start.detach() + size * gradient.sign() - scaled[:count]).clamp(-size, size)
        pushed = torch.cat([(scaled[:count] + moved).clamp(low, high), scaled[count:]])
        return Rows({**batch.inputs, "pixel_values": pushed}, batch.labels)

    return change
