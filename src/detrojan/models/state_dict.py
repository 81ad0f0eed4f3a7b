"""Read a bare state dict: safetensors, or a PyTorch file opened with weights only, so that nothing in it can run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrojan.errors import InputError, first_line
from detrojan.models.zoo import ZooConfig, ZooForImageClassification, build

BACKDOORBENCH = {"preactresnet18": "preact-resnet18", "vgg19_bn": "vgg19-bn", "vit_b_16": "vit-b-16"}
"""BackdoorBench's names of architectures, as they stand in its result files, and ours."""
NORMALISED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gtsrb": ((0.0,) * 3, (1.0,) * 3),
    "celeba": ((0.0,) * 3, (1.0,) * 3),
}
"""Mean and deviation by which BackdoorBench normalises the images of a data set (MNIST's: 0.5)."""
HEADS = {
    "linear.weight": "preact-resnet18",
    "classifier.6.weight": "vgg19-bn",
    "heads.head.weight": "vit-b-16",
}
PATCH = 16
State = dict[str, Tensor]


def read_state_dict(path: Path, architecture: str | None = None) -> ZooForImageClassification:
    """Build the architecture of a state dict and fill it; the tensors keep their type.

    Takes a plain state dict and BackdoorBench's result files (`model`, `model_name`, `num_classes`, `img_size`,
    `clean_data`). `architecture` is NAME or NAME@SIZE, where the size of the images cannot be told from the weights.
    Images are taken to be normalised by mean and deviation 0.5 unless the file names its data set. Raises InputError
    for anything that is not a state dict of a known architecture.
    """
    content = _tensors(path)
    meta = content if isinstance(content.get("model"), dict) else {}
    state = _bare(meta.get("model", content.get("state_dict", content)), path)
    given, _, size = (architecture or "").partition("@")
    if size and not (size.isdecimal() and int(size) > 0):
        raise InputError(f"--architecture {architecture}: write NAME or NAME@SIZE, for instance vgg19-bn@32")
    head = next((k for k in HEADS if k in state), None)
    name = given or BACKDOORBENCH.get(str(meta.get("model_name"))) or (HEADS[head] if head else None)
    if name is None:
        raise InputError(f"{path}: whose state dict this is cannot be told; name it with --architecture")
    head = head or next((k for k, v in reversed(state.items()) if v.dim() == 2), None)
    if head is None or len(state[head]) < 2:
        raise InputError(f"{path}: no classification head in it (a linear layer with a row for each class)")
    own = _edge(name, state, len(state[head]))
    edge = int(size) if size else _image_size(meta) or own
    mean, std = NORMALISED.get(str(meta.get("clean_data")), (None, None))
    config = ZooConfig(
        name,
        num_channels=_channels(state),
        image_size=edge,
        width=_width(state),
        blocks=_blocks(state),
        image_mean=list(mean) if mean else None,
        image_std=list(std) if std else None,
        resize=own if _positions(state) is not None and own != edge else None,
        id2label={k: str(k) for k in range(len(state[head]))},
    )
    model = ZooForImageClassification(config)
    try:
        model.module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        said = " ".join(" ".join(str(error).splitlines()[1:2]).split()) or first_line(error)
        raise InputError(f"{path}: does not fit {name} ({said[:200]})") from None
    return model


def _tensors(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_numpy()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it names {named[1]}" if named else "it is damaged or something else"
        raise InputError(
            f"{path}: not a state dict that can be read without running code ({why}); save the state dict alone"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _numpy() -> list[Any]:
    """Return what a pickled array of numbers names, as in BackdoorBench's files: nothing of it runs other code."""
    import numpy as np
    from numpy._core import multiarray

    made = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ]
    return [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, *made]


def _bare(state: Any, path: Path) -> State:
    """Return the tensors by name, without the prefixes of DataParallel and of a resizing layer before the model."""
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: not a state dict (names of parameters with their tensors)")
    for prefix in ("module.", "1."):
        if all(str(k).startswith(prefix) for k in state):
            state = {str(k).removeprefix(prefix): v for k, v in state.items()}
    return {str(k): v for k, v in state.items()}


def _channels(state: State) -> int:
    return next((int(v.shape[1]) for v in state.values() if v.dim() == 4), 3)


def _width(state: State) -> int:
    return int(state["conv1.weight"].shape[0]) if "conv1.weight" in state else 64


def _blocks(state: State) -> list[int] | None:
    """Count the blocks of each stage of a ResNet; None where there are none."""
    found = {m[1]: int(m[2]) + 1 for k in state if (m := re.match(r"layer(\d+)\.(\d+)\.", k))}
    return list(found.values()) or None


def _positions(state: State) -> Tensor | None:
    """Return the position embeddings of a torchvision ViT, (1, patches + 1, width)."""
    return next((v for k, v in state.items() if k.endswith("encoder.pos_embedding")), None)


def _edge(name: str, state: State, classes: int) -> int:
    """Return the edge of the images that the weights, or else their architecture, speak of."""
    positions = _positions(state)
    if positions is not None:
        return int((positions.shape[1] - 1) ** 0.5) * PATCH
    if name.startswith("timm/"):
        module: Any = build(ZooConfig(name, num_channels=_channels(state), num_labels=classes))
        return int((getattr(module, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1])
    return 224 if name == "vgg19-bn" else 32


def _image_size(meta: Mapping[str, Any]) -> int | None:
    """Return the edge of the images in a result file, whose `img_size` is height, width and channels."""
    size = meta.get("img_size")
    return int(size[0]) if isinstance(size, (list, tuple)) and size and int(size[0]) > 0 else None
