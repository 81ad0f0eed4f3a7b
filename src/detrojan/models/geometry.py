"""What images a checkpoint takes: their shape, and the mean and deviation by which they are normalised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detrojan.errors import InputError, first_line

EDGE = 224
SAME = 1e-5
"""Difference up to which the published mean and deviation are those that a processor was seen to apply."""


def geometry(config: Any, processor: Any, source: str) -> dict[str, Any]:
    """Return shape, mean and std of the images that the model takes, from its processor or its configuration."""
    if processor is not None:
        return _as_processed(config, processor, source)
    channels = int(getattr(config, "num_channels", 3))
    size = _size(config)
    if size is None:
        raise InputError(
            f"{source}: neither preprocessor_config.json nor image_size says how large its images are"
        )
    mean = tuple(getattr(config, "image_mean", (0.5,) * channels))
    std = tuple(getattr(config, "image_std", (0.5,) * channels))
    return {"shape": (channels, *size), "mean": mean, "std": std}


def _size(config: Any) -> tuple[int, int] | None:
    """Return height and width."""
    edge = getattr(config, "image_size", None)
    if edge is None:
        return None
    height, width = edge if isinstance(edge, (list, tuple)) else (edge, edge)
    return int(height), int(width)


def _as_processed(config: Any, processor: Any, source: str) -> dict[str, Any]:
    """Look at what the processor makes of a black and of a white image: its settings are named in too many ways."""
    from PIL import Image

    timm = getattr(processor, "data_config", None) or {}
    channels = int(timm["input_size"][0] if timm else getattr(config, "num_channels", 3))
    height, width = _size(config) or (EDGE, EDGE)
    colours = [Image.new("L" if channels == 1 else "RGB", (width, height), c) for c in ("black", "white")]
    try:
        black, white = processor(colours, return_tensors="pt")["pixel_values"].float()
    except Exception as error:
        raise InputError(f"{source}: its image processor cannot be used ({first_line(error)})") from None
    if black.dim() != 3 or len(black) != channels:
        raise InputError(
            f"{source}: its image processor gives images of shape {tuple(black.shape)}, not {channels} channels"
        )
    low, high = (_middle(image).double() for image in (black, white))
    if not bool((high > low).all()):
        raise InputError(f"{source}: its image processor makes black and white the same or swaps them")
    mean, std = -low / (high - low), 1 / (high - low)
    return {
        "shape": tuple(black.shape),
        "mean": _published(getattr(processor, "image_mean", timm.get("mean")), mean),
        "std": _published(getattr(processor, "image_std", timm.get("std")), std),
    }


def _middle(image: Tensor) -> Tensor:
    """Return the pixel in the middle, (channels,): a crop may have put a border around the image."""
    return image[:, image.shape[1] // 2, image.shape[2] // 2]


def _published(said: Any, seen: Tensor) -> tuple[float, ...]:
    """Return the exact numbers that a processor names where they are the ones that it applies."""
    try:
        named = torch.as_tensor(said, dtype=torch.float64).expand_as(seen)
    except (TypeError, ValueError, RuntimeError):
        return tuple(seen.tolist())
    return tuple((named if bool(((named - seen).abs() < SAME).all()) else seen).tolist())
