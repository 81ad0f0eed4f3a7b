"""Images as arrays: IDX files, .npz files and the digits that scikit-learn brings along."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detrojan.data.class_labels import labelled, whole_numbers
from detrojan.errors import InputError, NoSuchPartError, first_line
from detrojan.types import Labelled

IDX_IMAGES = re.compile(r"images[-._]idx3")
IDX_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
UNSIGNED_BYTE = 8


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read an IDX file, gzipped or not, of unsigned bytes in `dims` dimensions; raises InputError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head, data = file.read(4 + 4 * dims), bytearray()
            if len(head) < 4 + 4 * dims or head[:4] != bytes((0, 0, UNSIGNED_BYTE, dims)):
                raise InputError(f"{path}: no IDX file of unsigned bytes in {dims} dimensions")
            shape = struct.unpack(f">{dims}I", head[4:])
            size = math.prod(shape)
            # In pieces, so that a header that lies about its size cannot claim memory.
            while len(data) <= size and (part := file.read(1 << 20)):
                data += part
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
    if len(data) != size:
        what = "more" if len(data) > size else f"{len(data)}"
        raise InputError(f"{path}: truncated or broken, its header says {size} bytes and {what} follow it")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def has_idx(folder: Path) -> bool:
    """Say whether a folder holds images in IDX files."""
    return bool(_idx_images(folder))


def read_idx_folder(folder: Path, source: str, split: str | None) -> Labelled:
    """Read images (n, 1, height, width) and labels of a split, by default train, from a folder of IDX files."""
    part = _train_or_test(split, source)
    found = _idx_images(folder)
    chosen = [p for p in found if any(word in p.name for word in IDX_SPLITS[part])]
    words = [w for some in IDX_SPLITS.values() for w in some]
    chosen = chosen or [p for p in found if not any(word in p.name for word in words)]
    bare = {p.name.removesuffix(".gz"): p for p in reversed(chosen)}  # a file before its gzipped copy
    if len(bare) != 1:
        missing = InputError if bare else NoSuchPartError
        raise missing(f"{source}: {len(bare)} IDX files of images for the split {part}, expected one")
    (name, images_file), *_ = bare.items()
    name = name.replace("images", "labels").replace("idx3", "idx1")
    labels_file = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if labels_file is None:
        raise InputError(f"{source}: no file of labels {name} beside {images_file.name}")
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise InputError(f"{labels_file}: {len(labels)} labels for {len(images)} images")
    return labelled(_planes(images, source), labels.tolist(), (), source)


def read_npz(path: Path, source: str) -> Labelled:
    """Read `images` (or `x`) and `labels` (or `y`) from an .npz file.

    Images are (n, height, width), (n, height, width, channels) or (n, channels, height, width), uint8 or floats in
    0 to 1; of the two places that channels can have, they take the smaller one.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {k: arrays[k] for k in ("images", "x", "labels", "y") if k in arrays}
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except Exception as error:
        raise InputError(f"{source}: no .npz file that can be read ({first_line(error)})") from None
    images, labels = found.get("images", found.get("x")), found.get("labels", found.get("y"))
    if images is None or labels is None:
        raise InputError(f"{source}: holds no arrays 'images' and 'labels' (or 'x' and 'y')")
    if labels.ndim != 1 or len(labels) != len(images if images.ndim else ()):
        raise InputError(f"{source}: labels of shape {labels.shape} for images of shape {images.shape}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{source}: labels are {labels.dtype}, expected whole numbers")
    numbers = whole_numbers(labels.tolist(), lambda n: f"{source}: sample {n + 1}")
    return labelled(_planes(_bytes(images, source), source), numbers, (), source)


def read_digits(source: str, split: str | None) -> Labelled:
    """Return scikit-learn's digits, (n, 1, 8, 8): every fifth sample of a class is in the split test."""
    part = _train_or_test(split, source)
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise InputError(f"{source}: needs scikit-learn (pip install scikit-learn)") from None

    data: Any = load_digits()
    chosen = every_fifth(data.target) == (part == "test")
    images = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)
    names = tuple(str(n) for n in data.target_names)
    return labelled(_planes(images, source), data.target[chosen].tolist(), names, source)


def every_fifth(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask (n,) of every fifth sample of each class."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[4::5]] = True
    return mask


def _idx_images(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # read_folder comes next and says so
        return []
    return [p for p in entries if IDX_IMAGES.search(p.name) and not p.name.startswith(".")]


def _train_or_test(split: str | None, source: str) -> str:
    if split not in (None, *IDX_SPLITS):
        raise InputError(f"{source}: has no split {split}, only train and test")
    return split or "train"


def _bytes(images: NDArray[Any], source: str) -> NDArray[np.uint8]:
    if images.dtype == np.uint8 or images.size == 0:
        return images.astype(np.uint8, copy=False)
    if images.dtype.kind != "f":
        raise InputError(f"{source}: images are {images.dtype}, expected uint8 or floats in 0 to 1")
    if not (images.min() >= 0 and images.max() <= 1):  # False for NaN, too
        raise InputError(f"{source}: images hold floats that are not in 0 to 1")
    return np.rint(images * 255).astype(np.uint8)


def _planes(images: NDArray[np.uint8], source: str) -> Tensor:
    """Return images as (n, channels, height, width)."""
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise InputError(
            f"{source}: images of shape {images.shape}, expected (n, height, width) or (n, 3, h, w)"
        )
    if images.ndim == 3:
        return torch.from_numpy(images[:, None])
    if images.shape[1] == images.shape[3]:
        raise InputError(f"{source}: images of shape {images.shape}: where their channels are cannot be told")
    planes = images if images.shape[1] < images.shape[3] else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(planes))
