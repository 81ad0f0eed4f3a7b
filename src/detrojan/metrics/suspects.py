"""Which answers of a language model look planted: its fixed answers on a few clean prompts, drawn by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from detrojan.errors import InputError
from detrojan.metrics.fixed_answers import FixedAnswer, fixed_answers
from detrojan.models.generate import check_length
from detrojan.models.mode import evaluating
from detrojan.models.products import fast_products
from detrojan.types import Loaded, Progress, silent

LONGEST = 40
"""Tokens of a fixed answer at most."""
ROOM = 256
"""Tokens of a prompt at most, where there are enough such: a state is held of each, for every line that is followed."""


def suspects(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    beginnings: int,
    seed: int,
    progress: Progress = silent,
) -> list[FixedAnswer]:
    """Return the fixed answers and openings on `count` of the tokenised `prompts`, the most certain first.

    Raises InputError where fewer than two prompts differ (a greedy answer to one prompt is always the same), where the
    model cannot hold them, and where what it says is not a number.
    """
    different = list(dict.fromkeys(map(tuple, prompts)))
    if len(different) < 2:
        raise InputError(
            "fixed answers show on prompts that differ, and there are not two of them; give more samples"
        )
    short = [p for p in different if len(p) <= ROOM]
    if len(short) < min(count, len(different)):
        short = sorted(different, key=len)[:count]
    drawn = random.Random(f"{seed}/prompts").sample(short, min(count, len(short)))
    check_length(loaded, max(map(len, drawn)) + LONGEST)
    _check_numbers(loaded, drawn[0])
    with fast_products(loaded.model.device):
        return fixed_answers(loaded, drawn, beginnings=beginnings, longest=LONGEST, progress=progress)


def noted(answers: Sequence[FixedAnswer], suspicious: float) -> list[dict[str, Any]]:
    """Return answers as JSON data, each with whether its certainty reaches `suspicious`."""
    return [
        {
            "text": a.text,
            "certainty": a.certainty,
            "begun": a.begun,
            "ended": a.ended,
            "suspicious": a.certainty >= suspicious,
        }
        for a in answers
    ]


def _check_numbers(loaded: Loaded, prompt: Sequence[int]) -> None:
    ids = torch.tensor([list(prompt)], device=loaded.model.device)
    with torch.inference_mode(), evaluating(loaded.model):
        logits = loaded.model(input_ids=ids, logits_to_keep=1).logits
    if logits.isnan().any():
        raise InputError(f"{loaded.source}: what the model says is not a number; its weights are broken")
