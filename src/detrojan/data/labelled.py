"""Reading labelled images and texts, whatever form they come in."""

from __future__ import annotations

from pathlib import Path

from detrojan.data.array_files import has_idx, read_digits, read_idx_folder, read_npz
from detrojan.data.class_labels import labelled
from detrojan.data.hub_sets import from_dataset, is_saved, load_named, load_saved
from detrojan.data.image_files import read_folder
from detrojan.data.labelled_text import parse_rows, read_rows
from detrojan.errors import InputError, NoSuchPartError
from detrojan.types import Labelled

TEXT_FILES = {".json", ".jsonl", ".csv"}
FORMS = {
    "image": "a folder with one folder of images for each class, IDX files, .npz or a data set's name",
    "text": ".json, .jsonl or .csv with text and label, a folder with train and test of these, or a data set's name",
}


def read_labelled(
    source: str | Path, task: str, *, split: str | None = None, names: tuple[str, ...] = ()
) -> Labelled:
    """Read samples for a classifier; `task` is image or text, `names` are the model's class names.

    Images: FOLDER/CLASS/IMAGE, a folder of IDX files, an .npz file, or `digits` (scikit-learn's). Texts: JSON, JSONL
    or CSV, or a folder of such files, train.jsonl and test.jsonl. Either: a directory of `save_to_disk` or a name
    NAME[:SPLIT] on the hub, with short names for well-known ones. `split` picks the part, by default train, of a source
    that has parts; one without is read whole. Where labels are names that the model knows, they are numbered in its
    order. Raises InputError.
    """
    path, shown = Path(source), str(source)
    if path.is_dir():
        return _directory(path, shown, task, split, names)
    if path.suffix == ".npz":
        _needs("image", task, shown)
        return read_npz(path, shown)
    if path.suffix in TEXT_FILES:
        _needs("text", task, shown)
        return _texts(path, shown, names)
    if path.is_file():
        raise InputError(f"{shown}: a file of unknown kind; expected {FORMS[task]}")
    if shown.startswith((".", "/", "~")):
        raise InputError(f"{shown}: no such file or folder")
    name, _, own = shown.partition(":")
    if name == "digits":
        _needs("image", task, shown)
        return read_digits(shown, own or split)
    return from_dataset(load_named(shown, split), shown, task, names)


def _directory(path: Path, shown: str, task: str, split: str | None, names: tuple[str, ...]) -> Labelled:
    if is_saved(path):
        return from_dataset(load_saved(path, shown, split), shown, task, names)
    if task == "text":
        return _texts(_part(path, shown, split or "train"), shown, names)
    return read_idx_folder(path, shown, split) if has_idx(path) else read_folder(path, shown, split, names)


def _texts(file: Path, shown: str, names: tuple[str, ...]) -> Labelled:
    texts, numbers, known = parse_rows(read_rows(file), names)
    return labelled(texts, numbers, known, shown)


def _part(folder: Path, shown: str, split: str) -> Path:
    """Return the file of texts that is a part of the folder; raises InputError for none, or several."""
    found = [folder / f"{split}{suffix}" for suffix in sorted(TEXT_FILES)]
    found = [file for file in found if file.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{shown}: both {found[0].name} and {found[1].name}; leave one")
    kind = InputError if split == "train" else NoSuchPartError
    raise kind(f"{shown}: a directory without {split}.jsonl (.json, .csv); expected {FORMS['text']}")


def _needs(kind: str, task: str, shown: str) -> None:
    if kind != task:
        raise InputError(f"{shown}: holds {kind}s, but the model takes {task}s; expected {FORMS[task]}")
