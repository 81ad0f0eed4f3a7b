"""Images that stay on the disk until they are asked for, and folders of them, one folder a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from detrojan.data.class_labels import folder_numbers, labelled
from detrojan.errors import InputError, NoSuchPartError, first_line
from detrojan.types import Labelled

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
SPLITS = {"train", "test", "val", "valid", "validation"}


class Lazy(Sequence[Any]):
    """A sequence whose members are made when they are asked for; a slice or a selection makes none of them."""

    def __init__(self, make: Callable[[int], Any], places: Sequence[int]) -> None:
        self.make, self.places = make, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Any) -> Any:
        return Lazy(self.make, self.places[key]) if isinstance(key, slice) else self.make(self.places[key])

    def take(self, index: Tensor) -> Lazy:
        """Return the members at `index`, int64 (k,), in that order."""
        return Lazy(self.make, [self.places[k] for k in index.tolist()])


def read_folder(folder: Path, source: str, split: str | None, names: tuple[str, ...]) -> Labelled:
    """Read FOLDER/CLASS/IMAGE; where FOLDER holds parts (train, test, val), that of the split, by default train."""
    classes = _visible(folder, folder)
    parts = sorted(c.name for c in classes if c.is_dir())
    if parts and set(parts) <= SPLITS:
        if (split or "train") not in parts:
            raise NoSuchPartError(f"{source}: has no part {split or 'train'}, only {', '.join(parts)}")
        folder = folder / (split or "train")
        classes = _visible(folder, folder)
    classes = [c for c in classes if c.is_dir()]
    if not classes:
        raise InputError(f"{source}: no folders in it; images are expected in one folder for each class")
    number, known = folder_numbers([c.name for c in classes], names, source)
    found = [(image, number[c.name]) for c in classes for image in _images(c, folder)]
    if not found:
        raise InputError(f"{source}: no images in its folders ({', '.join(sorted(SUFFIXES))})")
    files = [image for image, _ in found]
    return labelled(Lazy(partial(_open_file, files), range(len(files))), [k for _, k in found], known, source)


def open_image(file: Path | IO[bytes], name: str) -> Image:
    """Return an image with its pixels, as they were stored; raises InputError with its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        # Only these formats: Pillow knows others, and hands some of them to programs such as Ghostscript.
        with Image.open(file, formats=FORMATS) as image:
            image.load()
    except UnidentifiedImageError:
        raise InputError(f"{name}: no image that can be opened (none of {', '.join(FORMATS)})") from None
    except Exception as error:
        raise InputError(f"{name}: no image that can be opened ({first_line(error)})") from None
    if image.mode.startswith(("I", "F")):  # their conversion to 8 bits would cut all bright pixels to white
        raise InputError(f"{name}: more than 8 bits for a colour; save it with 8")
    return image


def _open_file(files: Sequence[Path], n: int) -> Image:
    return open_image(files[n], str(files[n]))


def _images(folder: Path, root: Path) -> Iterator[Path]:
    for entry in _visible(folder, root):
        if entry.is_dir():
            yield from _images(entry, root)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry


def _visible(folder: Path, root: Path) -> list[Path]:
    """List what a folder holds, sorted, without hidden entries; raises InputError for a link that leaves `root`."""
    try:
        entries = sorted(e for e in folder.iterdir() if not e.name.startswith("."))
        for entry in entries:
            if entry.is_symlink():
                _check_link(entry, root)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself, before Python 3.13
        raise InputError(f"{folder}: cannot be read ({first_line(error)})") from None
    return entries


def _check_link(link: Path, root: Path) -> None:
    if not link.exists():
        raise InputError(f"{link}: a link that leads nowhere")
    if not link.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{link}: a link that leads out of the folder")
    if link.is_dir():  # it may lead back to a folder above it, and the walk would not end
        raise InputError(f"{link}: a link to a folder, which is not followed")
