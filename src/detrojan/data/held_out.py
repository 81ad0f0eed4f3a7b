"""Which samples a classifier's defense trains on, and which ones it is measured on. They never overlap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrojan.data.labelled import TEXT_FILES, read_labelled
from detrojan.data.stratified import sample, take
from detrojan.errors import InputError, NoSuchPartError
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
        except NoSuchPartError:  # the source has parts, but not this one
            return whole, False
        return found, not _same(found, whole)
    if isinstance(data, Labelled):
        return data, False
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return _pair(data[0], data[1], names), False
    raise InputError("data: give a file, folder or data set name, or (inputs, labels) of equal length")


def _same(one: Labelled, other: Labelled) -> bool:
    """Say whether two parts may be the same samples; where only their labels can be compared, equal ones count."""
    if len(one) != len(other) or not torch.equal(one.labels, other.labels):
        return False
    both = isinstance(one.inputs, Tensor) and isinstance(other.inputs, Tensor)
    return not both or torch.equal(one.inputs, other.inputs)


def _pair(inputs: Any, labels: Any, names: tuple[str, ...]) -> Labelled:
    """Return the record of inputs and labels in memory, tensors, arrays or lists; raises InputError."""
    try:
        numbers = torch.as_tensor(labels).cpu()
        inputs = torch.as_tensor(inputs).cpu() if hasattr(inputs, "shape") else inputs
        fits = numbers.dim() == 1 and len(inputs) == len(numbers)
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise InputError("data: give (inputs, labels) of equal length, the labels as whole numbers")
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise InputError(f"data: labels are {numbers.dtype}, expected whole numbers")
    return Labelled(inputs, numbers.long(), names, "data")


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

    A source with a test part of its own is measured on that; of any other a fifth is kept back (as many as classes at
    least), and where `samples` leaves more, all that it leaves. Never more than 10,000 are measured.
    """
    whole, _ = read_samples(data, task, names, split="train")
    if len(torch.unique(whole.labels)) < 2:
        raise InputError(f"{whole.source}: all samples are of one class; a classifier needs several")
    named = whole.names or names  # one part may hold fewer classes than the other
    test, has_test = read_samples(data, task, named, split="test") if held_out else (None, False)
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
