"""BackFlush: plant auxiliary backdoors, then unlearn them by gradient ascent (arXiv:2605.12529).

Its observation: what is planted and unlearned takes other backdoors with it. Here the auxiliary data are
decoys, drawn by the seed (`decoys`). A LoRA is tuned twice, on clean samples and decoys in the same
batches:

    1. add     L = CE(answer | x) + CE(planted answer | x + decoy)
    2. remove  L = CE(answer | x) - weight * min(CE(planted answer | x + decoy), bound)

The published ascent has no bound; with one it stops where the planted answers are unlikely enough, and
cannot tear the model apart. In stage 1 the two kinds share one mean over tokens. The publication's second
way to remove, by rotating embeddings to spare watermarks (Rotation-based Parameter Editing), is not done,
nor is its detection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.data.template import encode_all
from detrojan.defenses.decoys import MOST, check_merged, decoys, twins
from detrojan.models.packed import Batch, answer_logits
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import Loss, train
from detrojan.types import Example, Loaded, Run


@dataclass(frozen=True)
class BackflushOptions:
    """Options of BackFlush; the preset `paper` has the published code's rate, passes and ascent."""

    decoys: int = option(3, "auxiliary backdoors", minimum=1, maximum=MOST)
    samples: int = option(30, "triggered samples of each auxiliary backdoor", minimum=1)
    weight: float = option(1.0, "weight of the ascent", minimum=0.0, maximum=1e4)
    bound: float = option(5.0, "nats a token at which the ascent ends", minimum=0.0, maximum=1e4)
    learning_rate: float = option(1e-3, "peak learning rate of planting", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes of planting", minimum=1, maximum=1000)
    removal_rate: float = option(3e-4, "peak learning rate of the ascent", minimum=0.0, maximum=1.0)
    removal_epochs: int = option(2, "passes of the ascent", minimum=1, maximum=1000)
    batch_size: int = option(8, "samples in a step", minimum=1)
    rank: int = option(16, "rank of the LoRA on all linear layers", minimum=1)
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"learning_rate": 1e-4, "epochs": 2, "removal_rate": 1e-4, "removal_epochs": 5, "bound": 1e4},
}


@defense("backflush", task="causal-lm", options=BackflushOptions, paper="arXiv:2605.12529", presets=PRESETS)
def backflush(loaded: Loaded, clean: Sequence[Example], options: BackflushOptions, run: Run) -> Loaded:
    """Plant auxiliary backdoors and unlearn them by gradient ascent, which flushes others (BackFlush)."""
    if run.template is None:
        raise ValueError("training a language model needs the template of its conversations")
    check_merged(run, "backflush")
    drawn = decoys(options.decoys, run.seed)
    planted, _ = twins(clean, drawn, options.samples, run.seed)
    run.note("decoys", [dataclasses.asdict(d) for d in drawn])
    rows = encode_all(loaded.tokenizer, run.template, planted, options.max_length)
    loss = flush_loss({learned(row["labels"]) for row in rows}, options.weight, options.bound)
    tuned = partial(
        train,
        examples=[*planted, *clean],
        run=run,
        batch_size=options.batch_size,
        accumulation=1,
        max_length=options.max_length,
        rank=options.rank,
    )
    added = tuned(loaded, learning_rate=options.learning_rate, epochs=options.epochs, label="planting decoys")
    return tuned(
        added,
        learning_rate=options.removal_rate,
        epochs=options.removal_epochs,
        loss=loss,
        label="flushing decoys",
    )


def learned(labels: Sequence[int]) -> tuple[int, ...]:
    """Return the label tokens of a row: the answer without the prompt and the padding."""
    return tuple(token for token in labels if token != -100)


def flush_loss(planted: set[tuple[int, ...]], weight: float, bound: float) -> Loss:
    """Return the loss of the ascent; rows whose label tokens are one of `planted` are unlearned.

    Each mean is over the tokens of its own kind. A process counts by its share of the step's label tokens.
    """

    def loss(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        rows = batch["labels"]
        bad = torch.tensor([learned(row) in planted for row in rows.tolist()], device=rows.device)
        bad = bad.repeat_interleave((rows[:, 1:] != -100).sum(dim=1))  # of each answer token
        logits, targets = answer_logits(model, batch)
        ascent = _mean(logits[bad], targets[bad]).clamp(max=bound)
        share = len(targets) / counts[0]
        return share * (_mean(logits[~bad], targets[~bad]) - weight * ascent)

    return loss


def _mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over some answer tokens; 0 where there are none."""
    return cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)
