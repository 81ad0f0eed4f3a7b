"""What the image attacks share: whom they poison, how much, towards which label, and the training of the victim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detrojan.errors import InputError
from detrojan.fitting import Change, Loss, classification_loss, fit
from detrojan.options import option
from detrojan.registry import Entry, register
from detrojan.types import Classifier, Rows, Run

State = dict[str, Tensor]
"""What an attack drew or learned for its trigger: a pattern, a warping field, the weights of a generator."""
Apply = Callable[[Tensor, Any, State], Tensor]
"""(images in 0..1 (n, channels, height, width), the attack's options, its state) -> triggered images in 0..1."""

MODES = ("all-to-one", "all-to-all")


@dataclass(frozen=True)
class PlantOptions:
    """How a victim is poisoned and trained, whatever the attack."""

    target: int = option(0, "the class that the trigger draws (all-to-one)", minimum=0)
    mode: str = option("all-to-one", "all-to-one, or all-to-all: each class becomes the next", choices=MODES)
    poison_rate: float = option(0.1, "share of the training set that is poisoned", minimum=0.0, maximum=1.0)
    epochs: int = option(10, "passes over the training set", minimum=1, maximum=1000)
    learning_rate: float = option(0.01, "peak learning rate", minimum=0.0, maximum=10.0)
    batch_size: int = option(128, "images in a step", minimum=2)
    weight_decay: float = option(5e-4, "weight decay", minimum=0.0, maximum=1.0)
    adam: bool = option(False, "Adam in place of SGD with momentum")


@dataclass(frozen=True)
class Victim:
    """The classifier under attack (trained in place), its clean training set, and how it is poisoned."""

    classifier: Classifier
    rows: Rows
    """`pixel_values` are uint8 (n, channels, height, width)."""
    options: PlantOptions
    run: Run

    @property
    def images(self) -> Tensor:
        """The clean training images, uint8."""
        return self.rows.inputs["pixel_values"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return tuple(self.images.shape[1:])


@dataclass(frozen=True)
class ImageAttack:
    """One attack: how it plants (returns its state) and how its trigger is put on at test time."""

    plant: Callable[[Victim, Any], State]
    apply: Apply
    clean_label: bool = False
    """Poisons images of the target class alone and changes no label."""


def image_attack(
    name: str,
    *,
    plant: Callable[[Victim, Any], State],
    apply: Apply,
    options: type,
    paper: str,
    description: str,
    clean_label: bool = False,
) -> None:
    """Register an attack on image classifiers."""
    attack = ImageAttack(plant, apply, clean_label)
    register(Entry("trigger", name, "image", description, paper, attack, options))


def relabel(labels: Tensor, options: PlantOptions, classes: int) -> Tensor:
    """Return the labels that the trigger is to draw: the target, or of each class the next one."""
    if options.mode == "all-to-all":
        return (labels + 1) % classes
    return torch.full_like(labels, options.target)


def chosen(victim: Victim, *, clean_label: bool = False, rate: float | None = None, salt: int = 0) -> Tensor:
    """Draw which training samples are poisoned: exactly round(rate x n) of them, (k,).

    A clean-label attack draws from the target class alone (all of it where it is smaller than that), the others
    from the samples that do not carry the target label already. Another `salt` gives another draw.
    """
    options, labels = victim.options, victim.rows.labels
    if clean_label and options.mode == "all-to-all":
        raise InputError("a clean-label attack has one target; leave mode at all-to-one")
    if options.mode == "all-to-all":
        usable = torch.arange(len(labels))
    else:
        usable = (
            ((labels == options.target) if clean_label else (labels != options.target)).nonzero().flatten()
        )
    count = min(round((options.poison_rate if rate is None else rate) * len(labels)), len(usable))
    generator = torch.Generator().manual_seed(victim.run.seed * 7919 + salt)
    return usable[torch.randperm(len(usable), generator=generator)[:count]].sort().values


def others(victim: Victim, taken: Tensor, rate: float) -> Tensor:
    """Draw round(rate x n) samples, (k,), of any class, from those that are not `taken` (all where they are fewer)."""
    count = len(victim.rows)
    free = torch.ones(count, dtype=torch.bool)
    free[taken] = False
    usable = free.nonzero().flatten()
    generator = torch.Generator().manual_seed(victim.run.seed * 7919 + 1)  # not the draw of `chosen`
    return usable[torch.randperm(len(usable), generator=generator)[: round(rate * count)]].sort().values


def to_float(images: Tensor) -> Tensor:
    """Return images in 0..1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def to_bytes(images: Tensor) -> Tensor:
    """Round images in 0..1 to 8 bits, as an image file holds them."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def in_parts(images: Tensor, change: Callable[[Tensor], Tensor], size: int = 500) -> Tensor:
    """Apply a change to uint8 images part by part and return uint8 images."""
    return (
        torch.cat([to_bytes(change(to_float(part))) for part in images.split(size)])
        if len(images)
        else images
    )


def poisoned(victim: Victim, index: Tensor, triggered: Tensor, labels: Tensor | None = None) -> Rows:
    """Return the training set with the samples at `index` replaced: triggered images (k, ...) uint8 and their labels.

    Without `labels` they get those that the trigger is to draw.
    """
    images, marked = victim.images.clone(), victim.rows.labels.clone()
    images[index] = triggered
    if labels is None:
        labels = relabel(marked[index], victim.options, victim.classifier.classes)
    marked[index] = labels
    return Rows({"pixel_values": images}, marked)


def with_covers(victim: Victim, index: Tensor, triggered: Tensor, spared: Tensor, covers: Tensor) -> Rows:
    """Return the training set with triggers at `index`, relabelled, and at `spared` covers with their true labels."""
    labels = victim.rows.labels
    drawn = relabel(labels[index], victim.options, victim.classifier.classes)
    return poisoned(
        victim,
        torch.cat([index, spared]),
        torch.cat([triggered, covers]),
        torch.cat([drawn, labels[spared]]),
    )


def train(
    victim: Victim,
    rows: Rows | None = None,
    *,
    change: Change | None = None,
    loss: Loss = classification_loss,
    label: str = "training the backdoored model",
) -> None:
    """Train the victim on `rows` (by default its clean set) with the options of the plant."""
    options = victim.options
    fit(
        victim.classifier,
        rows or victim.rows,
        victim.run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        adam=options.adam,
        change=change,
        loss=loss,
        label=label,
    )


def poison_and_train(
    victim: Victim, trigger: Callable[[Tensor], Tensor], *, clean_label: bool = False
) -> None:
    """The plain attack: put the trigger on the chosen share, relabel it (unless clean-label), and train."""
    index = chosen(victim, clean_label=clean_label)
    triggered = in_parts(victim.images[index], trigger)
    train(victim, poisoned(victim, index, triggered, victim.rows.labels[index] if clean_label else None))
