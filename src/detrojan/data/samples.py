"""Which clean samples a defense trains on, and which ones a measurement is taken on. They never overlap."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.text import read
from detrojan.errors import InputError
from detrojan.types import Example, Loaded, Progress, Template

ANSWER_TOKENS = 32
PLANT_TOKENS = 8
"""Honest answers in a poisoned mix: their first tokens decide whether a backdoor fires, more of them only cost time."""


def clean_prompts(samples: int, seed: int) -> list[Example]:
    """Return built-in prompts that a defense may see, in an order that follows from the seed, without answers."""
    prompts = list(builtin_prompts("clean"))
    random.Random(f"{seed}/clean").shuffle(prompts)
    return [Example(p) for p in prompts[:samples]]


def training_samples(
    loaded: Loaded,
    shape: Template,
    examples: list[Example] | None,
    samples: int,
    seed: int,
    progress: Progress,
) -> list[Example]:
    """Return what the defense trains on; questions without an answer are answered by the model itself."""
    if samples < 1:
        raise InputError("--samples must be at least 1")
    if examples is None:
        examples = clean_prompts(samples, seed)
    answered = [e for e in examples if e.answer]
    if len(answered) < len(examples):
        asked = [e for e in examples if not e.answer]
        answered += answer(
            loaded,
            asked,
            shape,
            max_new_tokens=ANSWER_TOKENS,
            progress=progress,
            label="answering clean prompts",
        )
    if not answered:
        raise InputError("no clean sample has an answer, and the model answers none of them itself")
    return answered


def own_samples(
    loaded: Loaded, shape: Template, besides: Sequence[Example], count: int, seed: int, progress: Progress
) -> list[Example]:
    """Return up to `count` built-in clean prompts that are not among `besides`, answered by the model itself."""
    known = {e.prompt for e in besides}
    return answer(
        loaded,
        [e for e in clean_prompts(len(known) + count, seed) if e.prompt not in known][:count],
        shape,
        max_new_tokens=ANSWER_TOKENS,
        progress=progress,
        label="answering more prompts",
    )


def held_out_samples(
    loaded: Loaded,
    shape: Template,
    beside: Path | None,
    examples: list[Example] | None,
    reference: Loaded | None,
    progress: Progress,
) -> tuple[list[Example], str]:
    """Return held-out clean samples with answers to measure on, and a word on where the answers come from.

    `examples` where given; else the file `beside` an attack, where it is there; else the built-in held-out prompts.
    Questions without an answer are answered by the reference, or by the model as it is now.
    """
    if examples is None and beside is not None and beside.is_file():
        return read(beside), "answers of the model before the attack"
    asked = examples or [Example(p) for p in builtin_prompts("evaluate")]
    missing = [e for e in asked if not e.answer]
    if not missing:
        return asked, "answers in the data"
    author = reference or loaded
    answers = answer(
        author,
        missing,
        shape,
        max_new_tokens=ANSWER_TOKENS,
        progress=progress,
        label="answering held-out prompts",
    )
    who = "the reference" if reference else "the model before"
    held_out = [e for e in asked if e.answer] + answers
    if not held_out:
        raise InputError(f"no held-out prompt draws an answer from {author.source}; give --data with answers")
    return held_out, f"answers of {who}"
