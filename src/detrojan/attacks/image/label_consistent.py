"""Label-consistent (arXiv:1912.02771): images of the target class, made hard to learn, carry a patch in each corner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from detrojan.attacks.image.networks import device_of, pictures
from detrojan.attacks.image.plant import State, Victim, chosen, image_attack, in_parts, poisoned, train
from detrojan.attacks.image.surrogate import surrogate
from detrojan.fitting import Loss
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.training import isolated_rng
from detrojan.types import Classifier, Rows


@dataclass(frozen=True)
class LabelConsistentOptions:
    """Options of the noise and of the patch."""

    epsilon: float = option(0.06, "largest change of a pixel by the noise", minimum=0.0, maximum=1.0)
    noise_steps: int = option(20, "steps of the noise", minimum=1, maximum=1000)
    surrogate_epochs: int = option(
        3, "passes over the training set of the surrogate", minimum=1, maximum=1000
    )
    size: int = option(3, "edge of the patches in pixels", minimum=1)
    amplitude: float = option(1.0, "how much the patch lightens and darkens pixels", minimum=0.0, maximum=1.0)


def apply(images: Tensor, options: LabelConsistentOptions, state: State) -> Tensor:
    """Add a chessboard of +amplitude and -amplitude in each corner; images: (n, channels, height, width) in 0..1.

    The pixel in the very corner is lightened, its neighbours are darkened. The four patches mirror one another, so
    that an image that was flipped in training still carries all of them.
    """
    height, width = images.shape[-2:]
    down, across = (
        torch.minimum(torch.arange(edge), torch.arange(edge).flip(0)).to(images.device)
        for edge in (height, width)
    )
    inside = (down < options.size).unsqueeze(1) & (across < options.size)
    sign = 1 - 2 * ((down.unsqueeze(1) + across) % 2)
    return (images + options.amplitude * sign * inside).clamp(0, 1)


def away(
    classifier: Classifier, images: Tensor, labels: Tensor, epsilon: float, steps: int, rate: float
) -> Tensor:
    """Return images within `epsilon` of the given ones (each pixel) that look less like their labels to the classifier.

    Projected gradient descent from a random start: x <- clip(x + rate * epsilon * sign(grad CE(f(x), y))).
    images: (n, channels, height, width) in 0..1; labels: (n,).
    """
    was_training = classifier.model.training
    classifier.model.eval()  # its batch norm must neither learn from the noise nor couple the images
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    noisy = low + (high - low) * torch.rand_like(images)
    for _ in range(steps):
        noisy.requires_grad_(True)
        loss = cross_entropy(logits(classifier, {"pixel_values": noisy}), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, noisy)
        noisy = torch.clamp(noisy.detach() + rate * epsilon * slope.sign(), low, high)
    classifier.model.train(was_training)
    return noisy


def robust_loss(epsilon: float) -> Loss:
    """Return the loss of adversarial training: cross-entropy on images that one step of noise has moved.

    The paper's noise comes from such a model: it removes what a person would see, not only what one network sees.
    """

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        images, labels = pictures(classifier, batch)
        noisy = away(classifier, images, labels, epsilon, steps=1, rate=1.25)
        return cross_entropy(logits(classifier, {"pixel_values": noisy}), labels)

    return loss


def plant(victim: Victim, options: LabelConsistentOptions) -> State:
    """Add the noise and then the patches to a share of the target class, change no label, and train."""
    index = chosen(victim, clean_label=True)
    teacher = surrogate(victim, options.surrogate_epochs, robust_loss(options.epsilon))
    device = device_of(teacher)

    def trigger(images: Tensor) -> Tensor:
        moved, labels = images.to(device), torch.full((len(images),), victim.options.target, device=device)
        noisy = away(teacher, moved, labels, options.epsilon, options.noise_steps, 2.5 / options.noise_steps)
        return apply(noisy, options, {}).cpu()

    with isolated_rng(victim.run.seed):
        triggered = in_parts(victim.images[index], trigger)
    train(victim, poisoned(victim, index, triggered, victim.rows.labels[index]))
    return {}


image_attack(
    "lc",
    plant=plant,
    apply=apply,
    options=LabelConsistentOptions,
    paper="arXiv:1912.02771",
    description="adversarial noise on images of the target class, and a patch in each corner",
    clean_label=True,
)
