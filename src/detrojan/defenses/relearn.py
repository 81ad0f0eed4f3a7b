"""What ULRL relearns with: rows drawn anew, the terms of its loss, and more images where there are few."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div

from detrojan.fitting import crop_and_flip
from detrojan.training import isolated_rng
from detrojan.types import Rows

TEMPERATURE = 2.0
"""Softens answers before they are compared, so that the less likely classes count too (T)."""
SHIFT = 0.07
"""Of the edge, and one pixel at least: how far a copy of an image is shifted, up to."""


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


def distance(scores: Tensor, targets: Tensor) -> Tensor:
    """Return T^2 KL(targets || scores) of the softened answers, the mean over rows; both are logits (n, classes)."""
    ours, theirs = (scores / TEMPERATURE).log_softmax(-1), (targets / TEMPERATURE).log_softmax(-1)
    return TEMPERATURE**2 * kl_div(ours, theirs, reduction="batchmean", log_target=True)


def with_copies(clean: Rows, few: int, seed: int) -> Rows:
    """Return images and as many shifted copies of each as make `few` of them at least; labels go with them."""
    times = math.ceil(few / len(clean))
    edge = clean.inputs["pixel_values"].shape[-1]
    shifted = crop_and_flip(max(1, round(SHIFT * edge)), flip=False)
    with isolated_rng(seed):
        parts = [clean, *(shifted(clean) for _ in range(times - 1))]
    images = torch.cat([p.inputs["pixel_values"] for p in parts])
    return Rows({"pixel_values": images}, torch.cat([p.labels for p in parts]))
