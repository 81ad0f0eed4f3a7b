"""Read a bare state dict: safetensors, or a PyTorch file opened with weights only, so that nothing in it can run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrojan.errors import InputError, first_line
from detrojan.models.zoo import ZooConfig, ZooForImageClassification

BACKDOORBENCH = {"preactresnet18": "preact-resnet18", "vgg19_bn": "vgg19-bn", "vit_b_16": "vit-b-16"}
"""BackdoorBench's names of architectures, as they stand in its result files, and ours."""
HEADS = {
    "linear.weight": "preact-resnet18",
    "classifier.6.weight": "vgg19-bn",
    "heads.head.weight": "vit-b-16",
}


def read_state_dict(path: Path, architecture: str | None = None) -> ZooForImageClassification:
    """Build the architecture of a state dict and fill it.

    Takes a plain state dict and BackdoorBench's result files (`model`, `model_name`, `num_classes`, `img_size`).
    Images are taken to be normalised by mean and deviation 0.5 unless the directory form says otherwise. Raises
    InputError for anything that is not a state dict of a known architecture.
    """
    content = _tensors(path)
    meta = content if "model" in content and isinstance(content["model"], dict) else {}
    state = meta.get("model", content.get("state_dict", content))
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: not a state dict (names of parameters with their tensors)")
    state = {re.sub(r"^module\.", "", k): v for k, v in state.items()}
    named = BACKDOORBENCH.get(str(meta.get("model_name")), architecture)
    head = next((k for k in HEADS if k in state), None)
    name = architecture or named or (HEADS[head] if head else None)
    if name is None:
        raise InputError(f"{path}: whose state dict this is cannot be told; name it with --architecture")
    head = head or [k for k, v in state.items() if v.dim() == 2][-1]
    config = ZooConfig(
        name,
        num_channels=_channels(state),
        image_size=_edge(state, meta),
        width=_width(state),
        id2label={k: str(k) for k in range(len(state[head]))},
    )
    model = ZooForImageClassification(config)
    try:
        model.module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f"{path}: does not fit {name} ({first_line(error)})") from None
    return model


def _tensors(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not a state dict that can be read without running code ({first_line(error)})"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _channels(state: dict[str, Tensor]) -> int:
    return next((int(v.shape[1]) for v in state.values() if v.dim() == 4), 3)


def _width(state: dict[str, Tensor]) -> int:
    return int(state["conv1.weight"].shape[0]) if "conv1.weight" in state else 64


def _edge(state: dict[str, Tensor], meta: dict[str, Any]) -> int:
    size = meta.get("img_size")
    if isinstance(size, (list, tuple)) and size:
        return int(next(s for s in size if int(s) > 4))
    positions = next((v for k, v in state.items() if k.endswith("pos_embedding")), None)
    if positions is not None:
        return int((positions.shape[1] - 1) ** 0.5) * 16
    return 224 if "classifier.6.weight" in state else 32
