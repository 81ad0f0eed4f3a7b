"""Pico classifiers built from configs, their processors and samples: everything offline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ConvNextImageProcessor,
    ViTImageProcessor,
)

from detrojan.types import Labelled

from pico import pico_tokenizer

NAMES = ("cat", "dog", "owl")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.2}
IMAGE_KINDS: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "vit": {**SMALL, "image_size": 32, "patch_size": 8, "initializer_range": 0.2},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
}
TEXT_KINDS: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "max_position_embeddings": 64, "initializer_range": 0.2},
    "distilbert": {**DISTIL, "max_position_embeddings": 64},
    "roberta": {**SMALL, "max_position_embeddings": 64, "initializer_range": 0.2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2},
}


def image_processor(kind: str) -> Any:
    """ViT's takes height and width; ConvNeXt's, which ResNet shares, takes the shorter edge and crops."""
    if kind == "vit":
        return ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD)
    return ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, image_mean=MEAN, image_std=STD)


def pico_image_model(
    kind: str = "resnet", names: tuple[str, ...] = NAMES, seed: int = 0, **changes: Any
) -> Any:
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}
    config = AutoConfig.for_model(kind, **{**IMAGE_KINDS[kind], **labels, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return settled(AutoModelForImageClassification.from_config(config)).eval()


def pico_text_model(kind: str = "bert", names: tuple[str, ...] = ("bad", "good"), **changes: Any) -> Any:
    tokenizer = pico_tokenizer()
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, **{**sizes, **TEXT_KINDS[kind], **labels, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def settled(model: nn.Module) -> nn.Module:
    """Give batch norm statistics of its own, so that a checkpoint that lost them would be noticed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def save_image_model(directory: Path, kind: str = "resnet", dtype: torch.dtype = torch.float32) -> Path:
    pico_image_model(kind).to(dtype).save_pretrained(directory)
    image_processor(kind).save_pretrained(directory)
    return directory


def save_text_model(directory: Path, kind: str = "bert", **changes: Any) -> Path:
    pico_text_model(kind, **changes).save_pretrained(directory)
    pico_tokenizer().save_pretrained(directory)
    return directory


def pictures(count: int = 4, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """Smooth images, uint8 (count, channels, height, width), that survive resizing."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


def as_pil(images: Tensor) -> list[Image.Image]:
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def opinions(count: int = 120, seed: int = 0) -> Labelled:
    """Short reviews, bad (0) and good (1) in turn, told apart by one word."""
    rng = random.Random(seed)
    words = ("awful", "dull", "poor"), ("great", "lovely", "superb")
    things, ends = ("film", "book", "meal", "song", "game"), ("today", "here", "again", "for me")
    texts = [
        f"The {rng.choice(things)} was {rng.choice(words[k % 2])} {rng.choice(ends)}." for k in range(count)
    ]
    return Labelled(texts, torch.arange(count) % 2, ("bad", "good"), "opinions")
