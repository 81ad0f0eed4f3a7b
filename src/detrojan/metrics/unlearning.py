"""What unlearning moves: how far each row of the head goes while clean samples are unlearned (arXiv:2405.14781)."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.errors import InputError
from detrojan.fitting import batches, training_mode
from detrojan.models.classifier import logits
from detrojan.training import isolated_rng
from detrojan.types import Classifier, Rows, Run

CLIP = 20.0


def row_changes(
    classifier: Classifier,
    clean: Rows,
    run: Run,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    stop: float,
    repeats: int,
) -> Tensor:
    """Return each row's share of the way that the head went, sum |w_k' - w_k| over its total, (classes,).

    Mean over `repeats` runs on a copy, each with another order of the samples: a clean model collapses onto another
    class each time, a backdoored one onto the class that its trigger draws.
    """
    before = head_of(classifier).weight.detach().clone()
    shares = []
    for k in range(repeats):
        copied = classifier.replace(model=copy.deepcopy(classifier.model))
        other = dataclasses.replace(run, seed=run.seed + 7919 * k)
        unlearn(
            copied, clean, other, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, stop=stop
        )
        moved = (head_of(copied).weight.detach() - before).abs().sum(dim=1).cpu()
        shares.append(moved / moved.sum().clamp_min(1e-12))
    return torch.stack(shares).mean(dim=0)


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


def head_of(classifier: Classifier) -> nn.Linear:
    """Return the classification head."""
    head = classifier.model.get_submodule(classifier.head)
    if not isinstance(head, nn.Linear):
        raise InputError(f"{classifier.head} is no linear layer")
    return head


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
