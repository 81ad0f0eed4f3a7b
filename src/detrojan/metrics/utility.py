"""Usefulness on clean text: perplexity of honest answers, and distance from a reference model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from detrojan.data.template import encode_all
from detrojan.models.packed import Batch, answer_logits
from detrojan.training import collator
from detrojan.types import Example, Loaded, Progress, Template, silent

MAX_LENGTH = 2048


def perplexity(
    loaded: Loaded,
    examples: Sequence[Example],
    template: Template,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> float:
    """Return exp of the mean negative log-likelihood per answer token, over all answers together."""
    loss, count = 0.0, 0
    for batch in _batches(loaded, examples, template, batch_size, progress, "measuring perplexity"):
        logits, targets = _answer_logits(loaded, batch)
        loss += cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return math.exp(min(loss / max(count, 1), 700.0))


def divergence(
    loaded: Loaded,
    reference: Loaded,
    examples: Sequence[Example],
    template: Template,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> tuple[float, float]:
    """Return (mean KL(reference || model) in nats, share of equal most likely tokens) over answer tokens."""
    divergences, equal, count = 0.0, 0, 0
    for batch in _batches(loaded, examples, template, batch_size, progress, "comparing with the reference"):
        ours, targets = _answer_logits(loaded, batch)
        theirs, _ = _answer_logits(reference, batch)
        theirs = theirs.to(ours.device)
        divergences += kl_div(
            ours.log_softmax(-1), theirs.log_softmax(-1), reduction="sum", log_target=True
        ).item()
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(targets)
    return divergences / max(count, 1), equal / max(count, 1)


def _batches(
    loaded: Loaded,
    examples: Sequence[Example],
    template: Template,
    batch_size: int,
    progress: Progress,
    label: str,
) -> Iterator[Batch]:
    rows = encode_all(loaded.tokenizer, template, [e for e in examples if e.answer], MAX_LENGTH)
    rows.sort(key=lambda r: len(r["input_ids"]))
    collate = collator(loaded.tokenizer)
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size])
        progress(label, min(start + batch_size, len(rows)), len(rows))


def _answer_logits(loaded: Loaded, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits (tokens, vocabulary) that predict the answer tokens, in float32, and those tokens."""
    with torch.inference_mode():
        return answer_logits(loaded.model, {k: v.to(loaded.model.device) for k, v in batch.items()})
