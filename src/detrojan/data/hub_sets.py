"""Data sets by a name on the hub, or as the library `datasets` saved them in a directory."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan.data.class_labels import class_numbers, follow, labelled
from detrojan.data.image_files import Lazy, open_image
from detrojan.data.labelled_text import TEXTS, parse_rows
from detrojan.errors import InputError, NoSuchPartError, first_line
from detrojan.types import Labelled

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "gtsrb": "tanganke/gtsrb",
    "mnist": "ylecun/mnist",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}
TEST_SPLITS = {"tiny-imagenet": "valid"}  # its own test images have no labels
IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")


def load_named(source: str, split: str | None) -> Any:
    """Return a data set by NAME or NAME:SPLIT, where the name is a short one or the hub's; raises InputError."""
    from datasets import load_dataset

    name, _, own = source.partition(":")
    part = own or split or "train"
    if part == "test":
        part = TEST_SPLITS.get(name, part)
    try:
        return load_dataset(SHORT_NAMES.get(name, name), split=part)
    except Exception as error:
        unknown = isinstance(error, ValueError) and "split" in str(error)
        raise (NoSuchPartError if unknown else InputError)(
            f"{source}: neither a file nor a data set that loads ({first_line(error)})"
        ) from None


def is_saved(folder: Path) -> bool:
    """Say whether a folder is what `save_to_disk` writes."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_saved(folder: Path, source: str, split: str | None) -> Any:
    """Return a data set from the disk, or that of a split, by default train, where there are several."""
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:
        raise InputError(f"{source}: no data set that loads ({first_line(error)})") from None
    if not isinstance(found, dict):
        return found
    if (split or "train") not in found:
        raise NoSuchPartError(f"{source}: has no split {split or 'train'}, only {', '.join(found)}")
    return found[split or "train"]


def from_dataset(dataset: Any, source: str, task: str, names: tuple[str, ...]) -> Labelled:
    """Return the samples of a data set: its images or texts, and its class labels."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    features = dataset.features
    classes = [c for c in features if isinstance(features[c], ClassLabel)]
    label = _column(features, LABELS, classes, "labels", source)
    own = tuple(features[label].names) if label in classes else ()
    inputs: Any
    if task == "text":
        text = _column(features, TEXTS, [], "texts", source)
        rows = (
            (f"{source}: sample {n}", {"text": row[text], "label": row[label]})
            for n, row in enumerate(dataset.select_columns([text, label]), 1)
        )
        inputs, numbers, known = parse_rows(rows, names)
    else:
        pictures = [c for c in features if isinstance(features[c], ImageFeature)]
        image = _column(dict.fromkeys(pictures), IMAGES, pictures, "images", source)
        stored = dataset.select_columns([image]).cast_column(image, ImageFeature(decode=False))
        inputs = Lazy(partial(_open_cell, stored, image, source), range(len(dataset)))
        numbers, known = class_numbers(list(dataset[label][:]), lambda n: f"{source}: sample {n + 1}", names)
    if own:
        numbers, known = follow(numbers, own, names, source)
    return labelled(inputs, numbers, known, source)


def _column(features: Any, wanted: tuple[str, ...], fitting: list[str], what: str, source: str) -> str:
    """Return the column with a wanted name, else the only one of the fitting kind."""
    named = next((c for c in wanted if c in features), None)
    if named is not None:
        return named
    if len(fitting) != 1:
        raise InputError(f"{source}: which column holds the {what} cannot be told; call it {wanted[0]}")
    return fitting[0]


def _open_cell(stored: Any, column: str, source: str, n: int) -> Image:
    cell, name = stored[n][column] or {}, f"{source}: sample {n + 1}"
    if cell.get("bytes") is not None:
        return open_image(io.BytesIO(cell["bytes"]), name)
    if not cell.get("path"):
        raise InputError(f"{name}: has no image")
    return open_image(Path(cell["path"]), f"{name}, {cell['path']}")
