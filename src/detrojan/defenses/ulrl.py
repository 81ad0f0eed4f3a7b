"""ULRL: unlearn, then relearn (arXiv:2405.14781).

A backdoor ties one class to a few features that clean samples hardly use. So when a classifier is made to *unlearn*
its clean samples, the row of that class in the last linear layer moves more than the others:

1. unlearn:  gradient ascent on the cross-entropy of clean samples, on a copy
2. locate:   change of row k = sum |w_k' - w_k|; suspicious when its modified z-score
             (x - median) / (1.4826 MAD) is above 3.5
3. forget:   suspicious rows of the original are drawn anew, uniform in +-sqrt(2 / fan_in), bias 0
4. relearn:  L = CE + alpha * sum over suspicious rows of cos(w, w_original)
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from detrojan.errors import InputError
from detrojan.fitting import batches, classification_loss, fit, training_mode
from detrojan.metrics.margin import max_margins
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import isolated_rng
from detrojan.types import Classifier, Rows, Run

CLIP = 20.0
MEASURES = {"margin": "largest margin", "unlearn": "change of the row by unlearning"}


@dataclass(frozen=True)
class UlrlOptions:
    """Options of ULRL. The presets hold the published values of each data set."""

    locate: str = option(
        "margin",
        "how the backdoored class is found: margin, or unlearn as published",
        choices=tuple(MEASURES),
    )
    unlearn_rate: float = option(0.01, "learning rate of unlearning", minimum=0.0, maximum=10.0)
    unlearn_epochs: int = option(20, "passes of unlearning at most", minimum=1, maximum=1000)
    unlearn_stop: float = option(0.2, "unlearning ends at this accuracy", minimum=0.0, maximum=1.0)
    threshold: float = option(3.5, "modified z-score above which a row is suspicious", minimum=0.0)
    most: int = option(2, "suspicious rows at most", minimum=0)
    alpha: float = option(0.7, "weight of staying away from the old rows", minimum=0.0, maximum=100.0)
    learning_rate: float = option(0.005, "peak learning rate of relearning", minimum=0.0, maximum=10.0)
    epochs: int = option(20, "passes of relearning", minimum=1, maximum=1000)
    batch_size: int = option(128, "samples in a step", minimum=2)


SLOW = {"alpha": 0.001, "learning_rate": 0.001}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper-cifar10": {},
    "paper-gtsrb": SLOW,
    "paper-cifar100": SLOW,
    "paper-tiny": SLOW,
}


@defense("ulrl", task="classifier", options=UlrlOptions, paper="arXiv:2405.14781", presets=PRESETS)
def ulrl(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Classifier:
    """Unlearn clean samples to find the backdoored class, draw its row anew, and relearn (ULRL)."""
    found = locate(classifier, clean, options, run)
    rows = list(found.suspicious)
    for what, data in (("evidence", found.evidence.tolist()), ("scores", found.scores.tolist())):
        run.note(what, data)
    run.note("measure", found.measure)
    run.note("suspicious", rows)
    run.note("threshold", options.threshold)
    run.note("classes", list(classifier.names))
    head = head_of(classifier)
    original = head.weight.detach().clone()
    reinitialise(head, rows, run.seed)

    def loss(model: Classifier, batch: Rows) -> Tensor:
        return classification_loss(model, batch) + options.alpha * likeness(head_of(model), original, rows)

    return fit(
        classifier,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        loss=loss,
        label="relearning",
    )


@dataclass(frozen=True)
class Finding:
    """What speaks for a backdoor in each class, and which classes are suspicious, the most suspicious first."""

    measure: str
    evidence: Tensor
    """(classes,)"""
    scores: Tensor
    """The modified z-score of the evidence, (classes,)."""
    suspicious: tuple[int, ...]


def locate(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Finding:
    """Find the classes that a backdoor seems to draw."""
    if options.locate == "margin":
        evidence = max_margins(classifier, run.seed, bounds=_bounds(clean), progress=run.progress)
    else:
        evidence = row_changes(classifier, clean, options, run)
    rows = suspicious(evidence, options.threshold, options.most)
    return Finding(MEASURES[options.locate], evidence, z_scores(evidence), tuple(rows))


def _bounds(clean: Rows) -> tuple[float, float]:
    """Return the range of images: 0..1, or what the clean samples of a plain module span."""
    images = clean.inputs.get("pixel_values")
    if images is None or not images.is_floating_point():
        return 0.0, 1.0
    return float(images.min()), float(images.max())


def head_of(classifier: Classifier) -> nn.Linear:
    """Return the classification head."""
    head = classifier.model.get_submodule(classifier.head)
    if not isinstance(head, nn.Linear):
        raise InputError(f"{classifier.head} is no linear layer")
    return head


def row_changes(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Tensor:
    """Return how much each row of the head moved while a copy unlearned the clean samples: sum |change|, (classes,)."""
    copied = classifier.replace(model=copy.deepcopy(classifier.model))
    before = head_of(copied).weight.detach().clone()
    unlearn(
        copied,
        clean,
        run,
        learning_rate=options.unlearn_rate,
        epochs=options.unlearn_epochs,
        batch_size=options.batch_size,
        stop=options.unlearn_stop,
    )
    return (head_of(copied).weight.detach() - before).abs().sum(dim=1).cpu()


def unlearn(
    classifier: Classifier,
    clean: Rows,
    run: Run,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    stop: float,
) -> int:
    """Climb the cross-entropy of the clean samples, in place; returns the passes it took.

    SGD with momentum 0.9 and weight decay 5e-4, gradient norm clipped at 20, until the accuracy over a pass is at
    most `stop`. A loss that leaves the finite numbers ends it too: then everything is unlearned.
    """
    model = classifier.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=5e-4)
    with isolated_rng(run.seed):
        training_mode(model)
        for epoch in range(epochs):
            right = 0
            for batch in batches(clean, batch_size, 1, run.seed + epoch):
                out = logits(classifier, batch.inputs)
                labels = batch.labels.to(out.device)
                right += int((out.argmax(-1) == labels).sum())
                value = -cross_entropy(out, labels)
                if not torch.isfinite(value):
                    return epoch + 1
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP)
                optimizer.step()
            run.progress("unlearning", epoch + 1, epochs)
            if right / len(clean) <= stop:
                run.progress("unlearning", epochs, epochs)
                return epoch + 1
    return epochs


def z_scores(changes: Tensor) -> Tensor:
    """Return modified z-scores by median absolute deviation, (x - median) / (1.4826 MAD), (classes,).

    Where more than half of the values are equal (MAD 0), a value above the median scores infinity.
    """
    centred = changes - _median(changes)
    spread = 1.4826 * _median(centred.abs())
    return torch.where(centred == 0, torch.zeros_like(centred), centred / spread)


def _median(values: Tensor) -> Tensor:
    """Return the median; of an even count the mean of the middle two (torch's own takes the lower)."""
    return values.quantile(0.5)


def suspicious(changes: Tensor, threshold: float, most: int) -> list[int]:
    """Return the classes whose row moved suspiciously far, the farthest first, `most` of them at most."""
    scores = z_scores(changes)
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
