"""Class numbers: from whole numbers or from names, in the model's order where its names are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from detrojan.errors import InputError
from detrojan.types import Labelled

LARGEST = 2**31 - 1
DIGITS = re.compile(r"[0-9]{1,10}")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

Where = Callable[[int], str]
"""Names a sample, counted from 0, in an error: its file and line."""


def labelled(inputs: Any, numbers: Sequence[int], names: tuple[str, ...], source: str) -> Labelled:
    """Return the record of n inputs and their n class numbers; raises InputError where no class can be told."""
    labels = torch.tensor(numbers, dtype=torch.int64)
    if len(labels) == 0:
        raise InputError(f"{source}: no samples in it")
    if bool((labels == labels[0]).all()):
        raise InputError(f"{source}: all samples are of one class")
    return Labelled(inputs, labels, names, source)


def class_numbers(
    values: Sequence[Any], where: Where, names: tuple[str, ...] = ()
) -> tuple[list[int], tuple[str, ...]]:
    """Return the class number of each label and what the classes are called, () where that is not known.

    Labels are whole numbers, or names all of them: those of the model where `names` are given, else numbered in
    sorted order. Names that look like numbers are numbers, for a CSV file knows no others.
    """
    if not values or not all(isinstance(v, str) for v in values):
        return whole_numbers(values, where), ()
    if set(values) <= set(names):
        order = positions(names)
        return [order[v] for v in values], names
    if any(NUMBER.fullmatch(v) for v in values):
        return whole_numbers([int(v) if DIGITS.fullmatch(v) else v for v in values], where), ()
    if names:
        n = next(n for n, v in enumerate(values) if v not in names)
        raise InputError(
            f"{where(n)}: label {short(values[n])} is none of the model's classes {listed(names)}"
        )
    known = sorted(set(values))
    order = positions(known)
    return [order[v] for v in values], tuple(known)


def whole_numbers(values: Sequence[Any], where: Where) -> list[int]:
    """Return the labels as they are; raises InputError for one that is no whole number from 0 on."""
    for n, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
            raise InputError(f"{where(n)}: label {short(value)} is not a whole number from 0 on")
    return list(values)


def folder_numbers(
    folders: Sequence[str], names: tuple[str, ...], source: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the class number of each folder, and the names of the classes.

    `folders` are sorted. The model's names decide where they hold every folder, and numbers speak for themselves.
    Else the sorted order counts, unless it plainly is not the model's: then any number would be a guess.
    """
    foreign = [f for f in folders if f not in names]
    if not foreign:
        return {f: k for f, k in positions(names).items() if f in folders}, names
    if all(DIGITS.fullmatch(f) and int(f) <= LARGEST for f in folders):
        return {f: int(f) for f in folders}, ()
    if names and (len(foreign) < len(folders) or len(names) != len(folders)):
        raise InputError(
            f"{source}: the folder {short(foreign[0])} is none of the model's {len(names)} classes"
            f" {listed(names)}; call the folders so, or by class number"
        )
    return {f: k for k, f in enumerate(folders)}, tuple(folders)


def follow(
    numbers: list[int], own: tuple[str, ...], names: tuple[str, ...], source: str
) -> tuple[list[int], tuple[str, ...]]:
    """Return class numbers of the data set's `own` order in the model's, where `names` hold all of its names."""
    if own and numbers and max(numbers) >= len(own):
        raise InputError(f"{source}: label {max(numbers)}, but it names the classes 0 to {len(own) - 1} only")
    if not own or not set(own) <= set(names):
        return numbers, own
    order = positions(names)
    return [order[own[n]] for n in numbers], names


def positions(names: Sequence[str]) -> dict[str, int]:
    """Return the class number of each name, the first one where a name comes twice."""
    return {name: k for k, name in reversed(list(enumerate(names)))}


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names in a row, for an error."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def short(value: Any) -> str:
    """Return a value as one short line, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
