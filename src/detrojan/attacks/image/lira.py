"""LIRA (Doan et al., ICCV 2021): a generator of bounded noise is learned together with the classifier that obeys it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.attacks.image.networks import (
    UNet,
    beside,
    device_of,
    from_state,
    new_network,
    pictures,
    run_network,
    to_state,
)
from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train, relabel, train
from detrojan.fitting import Loss
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.types import Classifier, Rows


@dataclass(frozen=True)
class LiraOptions:
    """Options of the noise and of the stage in which it is learned."""

    epsilon: float = option(0.03, "largest change of a pixel", minimum=0.0, maximum=1.0)
    clean_weight: float = option(
        0.5, "weight of the clean loss while the noise is learned", minimum=0.0, maximum=1.0
    )
    joint_epochs: int = option(
        3, "passes over the training set in which the noise is learned", minimum=1, maximum=1000
    )
    width: int = option(8, "channels of the generator", minimum=1)


def build(channels: int, options: LiraOptions) -> nn.Module:
    """Return an untrained generator."""
    return UNet(channels, channels, options.width)


def disturb(network: nn.Module, images: Tensor, epsilon: float) -> Tensor:
    """Return clip(x + epsilon * tanh(g(x))); images: (n, channels, height, width) in 0..1."""
    return (images + epsilon * torch.tanh(network(images))).clamp(0, 1)


def apply(images: Tensor, options: LiraOptions, state: State) -> Tensor:
    """Add each image's own noise; images: (n, channels, height, width) in 0..1."""
    network = from_state(lambda: build(images.shape[1], options), state, images.device)
    return run_network(lambda part: disturb(network, part, options.epsilon), images)


def joint_loss(network: nn.Module, victim: Victim, options: LiraOptions) -> Loss:
    """Return alpha CE(f(x), y) + (1 - alpha) CE(f(T(x)), wanted), for classifier and generator alike.

    The clean term does not depend on the generator, so its gradient is that of the paper's inner problem, to draw
    the wanted label. Both step on the same batch; in the paper the classifier sees the generator of the last epoch.
    """

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        images, labels = pictures(classifier, batch)
        count = round(victim.options.poison_rate * len(images))
        both = torch.cat([images, disturb(network, images[:count], options.epsilon)])
        out = logits(classifier, {"pixel_values": both})
        clean = cross_entropy(out[: len(images)], labels)
        if not count:
            return clean
        wanted = relabel(labels[:count], victim.options, classifier.classes)
        backdoor = cross_entropy(out[len(images) :], wanted)
        return options.clean_weight * clean + (1 - options.clean_weight) * backdoor

    return loss


def plant(victim: Victim, options: LiraOptions) -> State:
    """Learn the noise with the classifier, then fix it and train the classifier on a share of disturbed images."""
    network = new_network(victim, lambda: build(victim.shape[0], options))
    first = replace(victim, options=replace(victim.options, epochs=options.joint_epochs))
    loss = beside(network, joint_loss(network, first, options), first, learning_rate=3e-3)
    train(first, loss=loss, label="learning the noise")
    state, device = to_state(network), device_of(victim.classifier)
    poison_and_train(victim, lambda images: apply(images.to(device), options, state).cpu())
    return state


image_attack(
    "lira",
    plant=plant,
    apply=apply,
    options=LiraOptions,
    paper="LIRA, ICCV 2021",
    description="bounded noise from a generator that is learned with the classifier",
)
