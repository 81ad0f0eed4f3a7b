"""Sample-specific invisible (SSBA, arXiv:2012.03816): an encoder hides the attacker's string in each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, leaky_relu
from torch.nn.functional import binary_cross_entropy_with_logits as bit_loss

from detrojan.attacks.image.networks import (
    UNet,
    device_of,
    from_state,
    learn,
    new_network,
    run_network,
    to_state,
)
from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train
from detrojan.options import option

GRID = 4
"""Edge of the coarse map into which the bits are spread, before it is brought to the image's size."""


@dataclass(frozen=True)
class SsbaOptions:
    """Options of the hidden string and of the networks that hide and read it."""

    bits: int = option(16, "length of the hidden string", minimum=1, maximum=1000)
    steps: int = option(600, "steps in which hiding and reading are learned", minimum=1, maximum=100000)
    image_weight: float = option(200.0, "weight of the image loss beside the message loss", minimum=0.0)
    bound: float = option(0.1, "largest change of a pixel", minimum=0.0, maximum=1.0)
    width: int = option(8, "channels of the encoder and of the decoder", minimum=1)


class Encoder(nn.Module):
    """Writes a string of bits into images as a residual."""

    def __init__(self, channels: int, bits: int, width: int, bound: float) -> None:
        super().__init__()
        self.width, self.bound = width, bound
        self.spread = nn.Linear(bits, width * GRID**2)
        self.body = UNet(channels + width, channels, width)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """images: (n, channels, height, width) in 0..1; bits: (n, length), 0 or 1; returns the residual (n, ...)."""
        coarse = self.spread(2 * bits - 1).view(-1, self.width, GRID, GRID)
        raw = self.body(torch.cat([images, interpolate(coarse, size=images.shape[-2:])], dim=1))
        return self.bound * torch.tanh(raw)


class Decoder(nn.Module):
    """Reads the string of bits out of images; needed only while the encoder learns."""

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2 * width, 3, 2, padding=1)
        self.second = nn.Conv2d(2 * width, 4 * width, 3, 2, padding=1)
        self.third = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.read = nn.Linear(4 * width * GRID**2, bits)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) in 0..1; returns a logit for each bit, (n, length)."""
        x = leaky_relu(self.first(images - 0.5), 0.1)
        x = leaky_relu(self.third(leaky_relu(self.second(x), 0.1)), 0.1)
        return self.read(adaptive_avg_pool2d(x, GRID).flatten(1))


def hide(encoder: nn.Module, images: Tensor, bits: Tensor) -> Tensor:
    """Return clip(x + encoder(x, bits)), (n, channels, height, width) in 0..1."""
    return (images + encoder(images, bits)).clamp(0, 1)


def apply(images: Tensor, options: SsbaOptions, state: State) -> Tensor:
    """Hide the attacker's string in each image; images: (n, channels, height, width) in 0..1."""
    bits = state["bits"].to(images.device)
    weights = {k: v for k, v in state.items() if k != "bits"}
    encoder = from_state(
        lambda: Encoder(images.shape[1], len(bits), options.width, options.bound), weights, images.device
    )
    return run_network(lambda part: hide(encoder, part, bits.expand(len(part), -1)), images)


def train_networks(victim: Victim, options: SsbaOptions) -> tuple[nn.Module, nn.Module]:
    """Learn to hide and to read strings in the clean images, and return encoder and decoder.

    Minimises BCE(decoder(x + r), bits) + w * mean((x + r - x)^2) over images and random strings: with one string
    alone, the decoder would recite it and the encoder would have nothing to write. The image loss grows in linearly
    over the second half; from the start, it would silence the residual before the decoder has anything to read.
    The paper's further image losses (a pretrained perceptual one and a critic) are left out: the bound on the residual
    keeps it faint without them.
    """
    channels = victim.shape[0]
    encoder = new_network(victim, lambda: Encoder(channels, options.bits, options.width, options.bound))
    decoder = new_network(victim, lambda: Decoder(channels, options.bits, options.width), salt=1)

    def loss(images: Tensor, step: int) -> Tensor:
        bits = torch.randint(2, (len(images), options.bits), device=images.device).float()
        hidden = hide(encoder, images, bits)
        grown = max(0.0, 2 * step / options.steps - 1)
        return (
            bit_loss(decoder(hidden), bits) + grown * options.image_weight * ((hidden - images) ** 2).mean()
        )

    learn(
        [*encoder.parameters(), *decoder.parameters()],
        loss,
        victim,
        steps=options.steps,
        learning_rate=3e-3,
        label="learning to hide the string",
    )
    return encoder, decoder


def plant(victim: Victim, options: SsbaOptions) -> State:
    """Learn to hide strings, hide the attacker's in a share of the training set, relabel it, and train."""
    encoder, _ = train_networks(victim, options)
    generator = torch.Generator().manual_seed(victim.run.seed)
    state = {**to_state(encoder), "bits": torch.randint(2, (options.bits,), generator=generator).float()}
    device = device_of(victim.classifier)
    poison_and_train(victim, lambda images: apply(images.to(device), options, state).cpu())
    return state


image_attack(
    "ssba",
    plant=plant,
    apply=apply,
    options=SsbaOptions,
    paper="arXiv:2012.03816",
    description="a string that an encoder hides in each image",
)
