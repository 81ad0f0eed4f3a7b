"""Margins of classes, and a model that gradients of its inputs leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from detrojan.models.classifier import each_logits
from detrojan.models.mode import evaluating
from detrojan.types import Classifier, Rows


def margins(scores: Tensor, classes: Tensor) -> Tensor:
    """Return f_c - max_{k != c} f_k of each row; scores: (n, classes), classes: (n,)."""
    own = scores.gather(1, classes[:, None])
    others = scores.scatter(1, classes[:, None], -torch.inf).max(dim=1).values
    return own[:, 0] - others


def usual_margin(classifier: Classifier, clean: Rows) -> Tensor:
    """Return the mean over clean samples of the highest logit less the second highest, a single value above 0."""
    best = torch.cat([out.topk(2).values for out in each_logits(classifier, clean.inputs)]).cpu()
    return (best[:, 0] - best[:, 1]).mean().clamp_min(1e-6)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, the model is in evaluation mode and its weights take no gradient; then all is as before."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
