"""Small networks that make triggers, and how they learn: by themselves, or beside the classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from detrojan.attacks.image.plant import State, Victim, to_float
from detrojan.errors import NonFiniteLossError
from detrojan.fitting import Loss
from detrojan.training import isolated_rng
from detrojan.types import Classifier, Rows


class UNet(nn.Module):
    """Two halvings and two doublings with skips: an image-shaped output from images of any size.

    Nothing in it looks across samples, so an image's output does not depend on the others of its batch.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.down1 = nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 3, 2, padding=1)
        self.up1 = nn.Conv2d(6 * width, 2 * width, 3, padding=1)
        self.up2 = nn.Conv2d(3 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs, height, width); returns (batch, outputs, height, width), unbounded."""
        full = leaky_relu(self.first(x), 0.1)
        half = leaky_relu(self.down1(full), 0.1)
        deep = leaky_relu(self.down2(half), 0.1)
        half = leaky_relu(self.up1(_beside(deep, half)), 0.1)
        return self.last(leaky_relu(self.up2(_beside(half, full)), 0.1))


def _beside(small: Tensor, large: Tensor) -> Tensor:
    """Bring the small map to the size of the large one and stack both."""
    return torch.cat([interpolate(small, size=large.shape[-2:]), large], dim=1)


def new_network(victim: Victim, build: Callable[[], nn.Module], salt: int = 0) -> nn.Module:
    """Build a network on the victim's device; its first weights follow from the seed and `salt`."""
    with isolated_rng(victim.run.seed * 7919 + salt):
        return build().to(device_of(victim.classifier))


def device_of(classifier: Classifier) -> torch.device:
    """Return where the classifier's weights lie."""
    return next(classifier.model.parameters()).device


def pictures(classifier: Classifier, batch: Rows) -> tuple[Tensor, Tensor]:
    """Return a batch as images in 0..1 and labels, on the classifier's device."""
    device = device_of(classifier)
    return to_float(batch.inputs["pixel_values"].to(device)), batch.labels.to(device)


def learn(
    parameters: Iterable[Tensor],
    loss: Callable[[Tensor, int], Tensor],
    victim: Victim,
    *,
    steps: int,
    learning_rate: float,
    label: str,
) -> None:
    """Minimise a loss of (clean images in 0..1, step from 0): Adam, cosine to zero, on random batches of the victim's.

    Counted in steps, not in epochs: how long a small generator takes hardly depends on how many images there are.
    """
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    device, size = device_of(victim.classifier), min(victim.options.batch_size, len(victim.rows))
    with isolated_rng(victim.run.seed):
        for step in range(steps):
            index = torch.randint(len(victim.rows), (size,))
            value = loss(to_float(victim.images[index].to(device)), step)
            if not torch.isfinite(value):
                raise NonFiniteLossError(f"{label}: the loss became {value.item()} at step {step + 1}")
            # Not backward(): a classifier that the loss looks through would collect gradients that nobody wants.
            for parameter, slope in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
                parameter.grad = slope
            optimizer.step()
            schedule.step()
            victim.run.progress(label, step + 1, steps)


def beside(network: nn.Module, loss: Loss, victim: Victim, learning_rate: float) -> Loss:
    """Return the loss such that `train` moves the network along with the classifier, on the same gradients.

    The classifier's loop calls the loss, its backward pass fills the gradients of both, and it steps the classifier.
    The network takes its own step as the next batch comes, which is the same: nothing has read it in between. Adam
    with the classifier's cosine schedule, at whose end the last gradients weigh nothing.
    """
    options = victim.options
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    steps = math.ceil(len(victim.rows) / options.batch_size) * options.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def both(classifier: Classifier, batch: Rows) -> Tensor:
        optimizer.step()  # before the first batch there are no gradients, and this does nothing
        optimizer.zero_grad()
        schedule.step()
        return loss(classifier, batch)

    return both


def run_network(network: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    """Apply a trained network part by part, without gradients; one image more or less changes no other's output."""
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(size)]) if len(images) else images


def to_state(network: nn.Module, prefix: str = "") -> State:
    """Return the weights as a trigger's state, under names that begin with `prefix`."""
    return {prefix + k: v.detach().cpu().clone() for k, v in network.state_dict().items()}


def from_state(
    build: Callable[[], nn.Module], state: State, device: torch.device, prefix: str = ""
) -> nn.Module:
    """Build a network with the weights of a state, on the device of the images; draws nothing from the process."""
    with isolated_rng(0):
        network = build()
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network.to(device)
