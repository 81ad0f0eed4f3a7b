"""How samples are fed to a classifier: texts become tokens, images become pixels and are normalised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrojan.errors import InputError, first_line
from detrojan.types import Classifier, Labelled

MAX_TOKENS = 256


def normalise(classifier: Classifier, images: Tensor) -> Tensor:
    """Return images as the model takes them: uint8 is brought to 0..1, then the mean and deviation are applied."""
    dtype = next(classifier.model.parameters()).dtype
    scaled = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
    mean, std = (
        torch.tensor(v, dtype=dtype, device=images.device).view(1, -1, 1, 1)
        for v in (classifier.mean, classifier.std)
    )
    return (scaled - mean) / std


def as_floats(images: Tensor) -> Tensor:
    """Return images as floats that a classifier takes; bytes are brought to 0..1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def pixel_range(images: Tensor) -> tuple[float, float]:
    """Return the range of pixels: 0..1 of bytes once they are floats, else what the images span."""
    if not images.is_floating_point():
        return 0.0, 1.0
    return float(images.min()), float(images.max())


def tokenise(classifier: Classifier, data: Labelled) -> dict[str, Tensor]:
    """Return input_ids and attention_mask (n, tokens) of texts, padded to the longest and cut at MAX_TOKENS."""
    texts = data.inputs
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{data.source}: holds images, but {classifier.source} is a text classifier")
    tokenizer = classifier.processor
    if tokenizer.pad_token_id is None:
        raise InputError(f"{classifier.source}: its tokenizer has no padding token")
    rows = tokenizer(
        list(texts),
        padding=True,
        padding_side="right",  # the same positions as without padding
        truncation=True,
        max_length=longest(classifier.model),
        return_tensors="pt",
    )
    return {k: rows[k] for k in ("input_ids", "attention_mask")}


def longest(model: nn.Module) -> int:
    """Return how many tokens a text classifier is given at most: what it has positions for, up to MAX_TOKENS."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            limit = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts on from the padding token
    return min(MAX_TOKENS, limit) if limit > 0 else MAX_TOKENS


def pixels(classifier: Classifier, data: Labelled) -> Tensor:
    """Return images (n, channels, height, width) as uint8, as the model sees them before normalisation.

    The checkpoint's own processor resizes and crops; its normalisation is undone, so that triggers and
    perturbations speak of pixels. Without a processor, arrays must fit and other images are resized.
    """
    images = data.inputs
    if isinstance(images, (list, tuple)) and images and isinstance(images[0], str):
        raise InputError(f"{data.source}: holds texts, but {classifier.source} is an image classifier")
    if not isinstance(images, Tensor):
        return torch.cat([_processed(classifier, part) for part in _parts(images)])
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"{data.source}: images are {images.dtype}, expected uint8 or floats")
    fits = tuple(images.shape[1:]) == classifier.shape
    coloured = images.dim() == 4 and images.shape[1] in (1, 3)
    if not fits and (images.is_floating_point() or not coloured or classifier.processor is None):
        raise InputError(_mismatch(data.source, tuple(images.shape[1:]), classifier))
    if images.is_floating_point() and classifier.normalises and not _is_fraction(images):
        raise InputError(
            f"{data.source}: images hold floats that are not in 0 to 1; {classifier.source} normalises them itself"
        )
    return images if fits else torch.cat([_processed(classifier, part) for part in _parts(images)])


def _is_fraction(images: Tensor) -> bool:
    return bool(((images >= 0) & (images <= 1)).all())  # False for NaN, too


def _mismatch(source: str, shape: tuple[int, ...], classifier: Classifier) -> str:
    have, need = (" x ".join(map(str, s or ())) for s in (shape, classifier.shape))
    return f"{source}: its images are {have} (channels, height, width), {classifier.source} takes {need}"


def _parts(images: Tensor | Sequence[Any], size: int = 64) -> Iterator[list[Any]]:
    from PIL import Image

    def picture(image: Any) -> Any:
        if not isinstance(image, Tensor):
            return image
        array = image.permute(1, 2, 0).numpy()
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)

    for start in range(0, len(images), size):
        yield [picture(images[k]) for k in range(start, min(start + size, len(images)))]


def _processed(classifier: Classifier, images: list[Any]) -> Tensor:
    channels, height, width = classifier.shape or (3, 0, 0)
    if channels not in (1, 3):
        raise InputError(f"{classifier.source}: takes images of {channels} channels; give them as .npz")
    images = [i.convert("L" if channels == 1 else "RGB") for i in images]
    if classifier.processor is None:
        import numpy as np

        arrays = [np.asarray(i.resize((width, height))) for i in images]
        stack = torch.from_numpy(np.stack(arrays))
        return stack.unsqueeze(1) if channels == 1 else stack.permute(0, 3, 1, 2).contiguous()
    try:
        ready = classifier.processor(images, return_tensors="pt")["pixel_values"].float()
    except Exception as error:
        raise InputError(
            f"{classifier.source}: its image processor cannot be used ({first_line(error)})"
        ) from None
    if tuple(ready.shape[1:]) != classifier.shape:
        raise InputError(_mismatch("after its processor", tuple(ready.shape[1:]), classifier))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (classifier.mean, classifier.std))
    return ((ready * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
