"""Which samples a classifier's defense trains on, and which ones it is measured on. They never overlap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrojan.data.labelled import TEXT_FILES, read_labelled
from detrojan.data.stratified import sample, take
from detrojan.errors import InputError
from detrojan.types import Labelled

HELD_OUT_AT_MOST = 10_000


@dataclass(frozen=True)
class Split:
    """Samples to train on, samples to measure on, and a word on where the latter come from."""

    train: Labelled
    held_out: Labelled | None
    origin: str


def read_samples(data: Any, task: str, names: tuple[str, ...], *, split: str) -> tuple[Labelled, bool]:
    """Read `data`, a source or (inputs, labels), and say whether it is one part of a source that has parts."""
    if isinstance(data, (str, Path)):
        whole = read_labelled(data, task, names=names)
        if split == "train" or Path(data).suffix in {".npz", *TEXT_FILES}:
            return whole, False
        try:
            found = read_labelled(data, task, split=split, names=names)
        except InputError:  # the source has parts, but not this one
            return whole, False
        same = len(found) == len(whole) and torch.equal(found.labels, whole.labels)
        return found, not same
    if isinstance(data, Labelled):
        return data, False
    if isinstance(data, (tuple, list)) and len(data) == 2:
        inputs, labels = data
        if isinstance(labels, Tensor) and labels.dim() == 1 and len(inputs) == len(labels):
            return Labelled(inputs, labels.long(), names, "data"), False
    raise InputError("data: give a file, folder or data set name, or (inputs, labels) of equal length")


def split_samples(
    data: Any,
    task: str,
    names: tuple[str, ...],
    *,
    samples: int | None,
    held_out: bool,
    seed: int,
) -> Split:
    """Draw the samples to train on, stratified, and those to measure on.

    A source with a test part of its own is measured on that; of any other a fifth is kept back (at least one of each
    class), and where `samples` leaves more, all that it leaves. Never more than 10,000 are measured.
    """
    whole, _ = read_samples(data, task, names, split="train")
    if len(torch.unique(whole.labels)) < 2:
        raise InputError(f"{whole.source}: all samples are of one class; a classifier needs several")
    test, has_test = read_samples(data, task, names, split="test") if held_out else (None, False)
    if not held_out or has_test:
        drawn, _ = sample(whole, min(samples or len(whole), len(whole)), seed)
        return Split(
            take(whole, drawn), _at_most(test, seed) if has_test else None, "the test part of the data"
        )
    kept = max(len(whole) // 5, len(torch.unique(whole.labels)))
    drawn, rest = sample(whole, min(samples or len(whole), len(whole) - kept), seed)
    return Split(
        take(whole, drawn), _at_most(take(whole, rest), seed), "samples of the data that were kept back"
    )


def _at_most(data: Labelled | None, seed: int) -> Labelled | None:
    if data is None or len(data) <= HELD_OUT_AT_MOST:
        return data
    drawn, _ = sample(data, HELD_OUT_AT_MOST, seed)
    return take(data, drawn)
