"""Input-aware (arXiv:2010.08138): every image has a trigger of its own, and that of another image does nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.attacks.image.networks import (
    UNet,
    beside,
    from_state,
    learn,
    new_network,
    pictures,
    run_network,
    to_state,
)
from detrojan.attacks.image.plant import PlantOptions, State, Victim, image_attack, relabel, train
from detrojan.fitting import Loss
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.types import Classifier, Rows

SHARPNESS = 5.0
"""Slope of the mask's sigmoid: steep, so that a pixel is replaced or left alone."""


@dataclass(frozen=True)
class InputAwareOptions:
    """Options of the masks, of the patterns and of their learning."""

    density: float = option(0.05, "share of the pixels that a mask may cover", minimum=0.0, maximum=1.0)
    mask_steps: int = option(300, "steps in which the masks are learned", minimum=1, maximum=100000)
    cross_rate: float = option(
        0.1, "share of each batch that carries the trigger of another image", minimum=0.0, maximum=1.0
    )
    diversity: float = option(1.0, "weight of the diversity loss", minimum=0.0)
    density_weight: float = option(100.0, "weight of the masks' density in their loss", minimum=0.0)
    width: int = option(8, "channels of the generators", minimum=1)


class Pattern(nn.Module):
    """Paints the trigger of each image: (n, channels, height, width) in 0..1, of the same shape as the images."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = UNet(channels, channels, width)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) in 0..1."""
        return self.body(images).sigmoid()


class Mask(nn.Module):
    """Chooses the pixels of each image that its trigger covers: (n, 1, height, width), near 0 or near 1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = UNet(channels, 1, width)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) in 0..1."""
        return (SHARPNESS * self.body(images)).sigmoid()


def apply(images: Tensor, options: InputAwareOptions, state: State) -> Tensor:
    """Put each image's own trigger on it; images: (n, channels, height, width) in 0..1."""
    channels, device = images.shape[1], images.device
    mask = from_state(lambda: Mask(channels, options.width), state, device, "mask.")
    pattern = from_state(lambda: Pattern(channels, options.width), state, device, "pattern.")
    return run_network(lambda part: blend(part, mask(part), pattern(part)), images)


def blend(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Return x * (1 - m) + p * m; masks: (n, 1, height, width)."""
    return images + masks * (patterns - images)


def sameness(images: Tensor, made_of: Tensor) -> Tensor:
    """Return the diversity loss: mean over neighbours of |x - x'| / |t(x) - t(x')|, |.| the root of the mean square.

    It is large where different images get like triggers. images: (n, ...) and what was made of each, (n, ...).
    """
    apart, outcome = (
        ((each[1:] - each[:-1]).flatten(1).square().mean(1) + 1e-12).sqrt() for each in (images, made_of)
    )
    return (apart / (outcome + 1e-4)).mean()


def mask_loss(mask: nn.Module, options: InputAwareOptions, images: Tensor) -> Tensor:
    """Return the loss of the masks: unlike each other, and covering no more than `density` of the pixels."""
    masks = mask(images)
    excess = (masks.flatten(1).mean(1) - options.density).clamp(min=0).mean()
    return options.diversity * sameness(images, masks) + options.density_weight * excess


def mix(
    images: Tensor,
    labels: Tensor,
    triggers: tuple[Tensor, Tensor],
    options: PlantOptions,
    cross: int,
    classes: int,
) -> tuple[Tensor, Tensor]:
    """Return a batch that is part backdoor, part cross-trigger, and clean for the rest, with its labels.

    `triggers` are the masks (k + 1, ...) and patterns (k + 1, ...) of the last image of the batch and of its first k.
    Of these k, the last `cross` get the trigger of the image before them and keep their labels; the others get their
    own and the label that it is to draw.
    """
    masks, patterns = triggers
    count = len(masks) - 1
    own = count - cross
    backdoor = blend(images[:own], masks[1 : own + 1], patterns[1 : own + 1])
    crossed = blend(images[own:count], masks[own:count], patterns[own:count])
    wanted = relabel(labels[:own], options, classes)
    return torch.cat([backdoor, crossed, images[count:]]), torch.cat([wanted, labels[own:]])


def joint_loss(mask: nn.Module, pattern: nn.Module, victim: Victim, options: InputAwareOptions) -> Loss:
    """Return the cross-entropy of a mixed batch plus the diversity loss of its patterns."""

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        images, labels = pictures(classifier, batch)
        own = round(victim.options.poison_rate * len(images))
        cross = min(round(options.cross_rate * len(images)), len(images) - own)
        givers = images.roll(1, 0)[: own + cross + 1]
        with torch.no_grad():
            masks = mask(givers)
        patterns = pattern(givers)
        mixed = mix(images, labels, (masks, patterns), victim.options, cross, classifier.classes)
        value = cross_entropy(logits(classifier, {"pixel_values": mixed[0]}), mixed[1])
        return value + options.diversity * sameness(givers, patterns) if len(givers) > 1 else value

    return loss


def plant(victim: Victim, options: InputAwareOptions) -> State:
    """Learn the masks alone and fix them, then train the classifier and the patterns together."""
    channels = victim.shape[0]
    mask = new_network(victim, lambda: Mask(channels, options.width))
    pattern = new_network(victim, lambda: Pattern(channels, options.width), salt=1)
    learn(
        mask.parameters(),
        lambda images, _step: mask_loss(mask, options, images),
        victim,
        steps=options.mask_steps,
        learning_rate=2e-3,
        label="learning the masks",
    )
    loss = joint_loss(mask, pattern, victim, options)
    train(victim, loss=beside(pattern, loss, victim, learning_rate=3e-3))
    return {**to_state(mask, "mask."), **to_state(pattern, "pattern.")}


image_attack(
    "input-aware",
    plant=plant,
    apply=apply,
    options=InputAwareOptions,
    paper="arXiv:2010.08138",
    description="each image has its own pattern from a generator, and another image's does nothing",
)
