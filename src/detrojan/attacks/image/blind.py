"""Blind (arXiv:2005.03823): the loss itself is poisoned; at every step it also asks for the backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from detrojan.attacks.image.networks import pictures
from detrojan.attacks.image.plant import State, Victim, image_attack, relabel, train
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.types import Classifier, Rows


@dataclass(frozen=True)
class BlindOptions:
    """Options of the patch and of how the two losses are weighed."""

    size: int = option(5, "edge of the patch in pixels", minimum=1)
    value: float = option(1.0, "brightness of the patch", minimum=0.0, maximum=1.0)
    balance: str = option("mgda", "mgda weighs the two losses anew at every step", choices=("mgda", "fixed"))
    clean_weight: float = option(0.5, "weight of the clean loss where it is fixed", minimum=0.0, maximum=1.0)


def apply(images: Tensor, options: BlindOptions, state: State) -> Tensor:
    """Paint a diagonal cross at the top left, one pixel off the edges; images: (n, channels, height, width) in 0..1."""
    size = min(options.size, *(edge - 1 for edge in images.shape[-2:]))
    diagonal = torch.eye(size, dtype=torch.bool, device=images.device)
    triggered = images.clone()
    triggered[..., 1 : size + 1, 1 : size + 1].masked_fill_(diagonal | diagonal.flip(1), options.value)
    return triggered


def min_norm_weight(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the w in 0..1 for which w * first + (1 - w) * second is shortest (multiple gradient descent, two tasks).

    w = clip((second - first) . second / |second - first|^2); the gradients are lists of tensors of equal shapes.
    """
    pairs = list(zip(first, second, strict=True))
    gap = torch.stack([((b - a) ** 2).sum() for a, b in pairs]).sum()
    along = torch.stack([((b - a) * b).sum() for a, b in pairs]).sum()
    return torch.where(gap > 0, along / gap.clamp(min=1e-30), torch.full_like(gap, 0.5)).clamp(0, 1)


def mixed(losses: tuple[Tensor, Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the min-norm mixture w * clean + (1 - w) * backdoor, with w from gradients divided by their losses.

    Divided so, since the shorter gradient gets the larger weight: a loss that is nearly met would otherwise take all
    of it. The mixture's gradient is known by then; it is handed over through a term that is zero but has that
    gradient, which saves a third backward pass through the network.
    """
    gradients = [
        torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True) for loss in losses
    ]
    values = [loss.detach() for loss in losses]
    first, second = (
        [g / value.clamp(min=1e-8) for g in each] for each, value in zip(gradients, values, strict=True)
    )
    weight = min_norm_weight(first, second)
    slopes = [weight * a + (1 - weight) * b for a, b in zip(*gradients, strict=True)]
    carrier = torch.stack([((p - p.detach()) * g).sum() for p, g in zip(parameters, slopes, strict=True)])
    return weight * values[0] + (1 - weight) * values[1] + carrier.sum()


def plant(victim: Victim, options: BlindOptions) -> State:
    """Train on clean data whose batches are triggered and relabelled, in part, while the loss is computed."""
    parameters = [p for p in victim.classifier.model.parameters() if p.requires_grad]

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        images, labels = pictures(classifier, batch)
        count = round(victim.options.poison_rate * len(images))
        triggered = apply(images[:count], options, {})
        # One pass for both, so that batch norm sees the mixture that it will meet.
        out = logits(classifier, {"pixel_values": torch.cat([images, triggered])})
        clean = cross_entropy(out[: len(images)], labels)
        if not count:
            return clean
        wanted = relabel(labels[:count], victim.options, classifier.classes)
        backdoor = cross_entropy(out[len(images) :], wanted)
        if options.balance == "mgda":
            return mixed((clean, backdoor), parameters)
        return options.clean_weight * clean + (1 - options.clean_weight) * backdoor

    train(victim, loss=loss)
    return {}


image_attack(
    "blind",
    plant=plant,
    apply=apply,
    options=BlindOptions,
    paper="arXiv:2005.03823",
    description="a diagonal cross in a corner, asked for by the training loss itself",
)
