"""Labelled samples: every form they are read from, what is refused, and stratified draws."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from detrojan.data import hub_sets
from detrojan.data.array_files import every_fifth, read_idx
from detrojan.data.image_files import Lazy
from detrojan.data.labelled import read_labelled
from detrojan.data.stratified import quotas, sample, take
from detrojan.errors import InputError
from detrojan.types import Labelled


def refused(source: str | Path, task: str = "image", **options: Any) -> str:
    """Return the message of the InputError, which is one line."""
    with pytest.raises(InputError) as caught:
        read_labelled(source, task, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)
    return path


def folder(root: Path, *classes: str) -> Path:
    """Write two images a class, whose red is 10 * class + number."""
    for k, name in enumerate(classes):
        for n in range(2):
            picture(root / name / f"{n}.png", 10 * k + n)
    return root


def reds(images: Any) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in images]


# Folders of images


def test_folder(tmp_path: Path) -> None:
    data = read_labelled(folder(tmp_path, "cat", "ant", "bee"), "image")
    assert data.names == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels.dtype == torch.int64
    assert reds(data.inputs) == [10, 11, 20, 21, 0, 1]
    assert data.inputs[0].size == (4, 3)
    assert data.source == str(tmp_path)


@pytest.mark.parametrize(
    ("folders", "names", "labels", "known"),
    [
        (("a", "b"), ("b", "c", "a"), [2, 2, 0, 0], ("b", "c", "a")),
        (("a", "b"), ("x", "y"), [0, 0, 1, 1], ("a", "b")),
        (("10", "9"), (), [10, 10, 9, 9], ()),
        (("00003", "00000"), ("stop", "yield"), [0, 0, 3, 3], ()),
        (("1", "2"), ("1", "2", "3"), [0, 0, 1, 1], ("1", "2", "3")),
        (("1", "b"), (), [0, 0, 1, 1], ("1", "b")),
    ],
)
def test_folder_order(
    folders: tuple[str, ...],
    names: tuple[str, ...],
    labels: list[int],
    known: tuple[str, ...],
    tmp_path: Path,
) -> None:
    data = read_labelled(folder(tmp_path, *folders), "image", names=names)
    assert data.labels.tolist() == labels
    assert data.names == known


@pytest.mark.parametrize("names", [("a", "c"), ("x", "y", "z")])
def test_folders_that_are_not_the_models(names: tuple[str, ...], tmp_path: Path) -> None:
    message = refused(folder(tmp_path, "a", "b"), names=names)
    assert "is none of the model's" in message


def test_folder_without_images_keeps_its_number(tmp_path: Path) -> None:
    folder(tmp_path, "a", "c")
    (tmp_path / "b").mkdir()
    assert read_labelled(tmp_path, "image").labels.tolist() == [0, 0, 2, 2]


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    picture(tmp_path / ".cache" / "x.png")
    picture(tmp_path / "a" / ".hidden.png")
    picture(tmp_path / "a" / ".git" / "x.png")
    picture(tmp_path / "top.png")
    (tmp_path / "a" / "notes.csv").write_text("x")
    (tmp_path / "a" / "folder.png").mkdir()
    assert len(read_labelled(tmp_path, "image")) == 4


def test_folders_in_a_class_and_kinds_of_files(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    for name in ("deep/er/x.JPEG", "y.ppm", "z.webp", "t.tif", "b.bmp"):
        picture(tmp_path / "b" / name, 200)
    data = read_labelled(tmp_path, "image")
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert all(abs(red - 200) < 8 for red in sorted(reds(data.inputs))[4:])


def test_images_are_opened_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    honest = Image.open

    def spy(file: Any, **options: Any) -> Any:
        opened.append(Path(file).name)
        return honest(file, **options)

    monkeypatch.setattr(Image, "open", spy)
    data = read_labelled(folder(tmp_path, "a", "b"), "image")
    part = take(data, torch.tensor([3, 0]))
    assert len(data.inputs[1:3]) == len(part) == 2
    assert opened == []
    assert reds([data.inputs[1]]) == [1]
    assert reds(part.inputs) == [11, 0]
    assert opened == ["1.png", "1.png", "0.png"]


def test_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[TiffImagePlugin.Image.ExifTags.Base.Orientation] = 6
    folder(tmp_path, "a", "b")
    Image.new("RGB", (4, 3)).save(tmp_path / "a" / "0.jpg", exif=exif)
    assert read_labelled(tmp_path, "image").inputs[0].size == (4, 3)


def text_instead(path: Path) -> None:
    path.write_text("no image")


def cut_short(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((3, 4), 30000, dtype=np.uint16)).save(path)


def other_format(path: Path) -> None:
    Image.new("RGB", (4, 3)).save(path, format="EPS")


@pytest.mark.parametrize("spoil", [text_instead, cut_short, sixteen_bits, other_format, Path.unlink])
def test_bad_image(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    data = read_labelled(folder(tmp_path, "a", "b"), "image")
    bad = tmp_path / "a" / "1.png"
    spoil(bad)
    assert reds([data.inputs[0], data.inputs[2]]) == [0, 10]
    with pytest.raises(InputError) as caught:
        data.inputs[1]
    assert str(caught.value).startswith(f"{bad}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("link", "target", "fragment"),
    [
        ("root/a/link.png", "secret/s.png", "a link that leads out of the folder"),
        ("root/b", "secret", "a link that leads out of the folder"),
        ("root/a/nested", "secret", "a link that leads out of the folder"),
        ("root/a/up", "root", "a link to a folder"),
        ("root/a/gone.png", "nowhere.png", "a link that leads nowhere"),
        ("root/a/self.png", "root/a/self.png", "self.png: a link that leads nowhere"),
    ],
)
def test_links(link: str, target: str, fragment: str, tmp_path: Path) -> None:
    folder(tmp_path / "root", "a", "c")
    picture(tmp_path / "secret" / "s.png")
    (tmp_path / link).symlink_to(tmp_path / target)
    assert fragment in refused(tmp_path / "root")


def test_links_inside_are_fine(tmp_path: Path) -> None:
    folder(tmp_path / "root", "a", "b")
    (tmp_path / "root/a/again.png").symlink_to(tmp_path / "root/b/0.png")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    data = read_labelled(tmp_path / "alias", "image")
    assert reds(data.inputs) == [0, 1, 10, 10, 11]


def test_parts_of_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "train", "a", "b")
    folder(tmp_path / "test", "a", "b", "c")
    assert len(read_labelled(tmp_path, "image")) == 4
    assert len(read_labelled(tmp_path, "image", split="test")) == 6
    assert "has no part val, only test, train" in refused(tmp_path, split="val")


def test_folders_without_samples(tmp_path: Path) -> None:
    assert "no folders in it" in refused(tmp_path)
    picture(tmp_path / "top.png")
    assert "no folders in it" in refused(tmp_path)
    (tmp_path / "a").mkdir()
    assert "no images" in refused(tmp_path)
    picture(tmp_path / "a" / "x.png")
    assert refused(tmp_path) == f"{tmp_path}: all samples are of one class"


# IDX


def idx(values: Any) -> bytes:
    array = np.asarray(values, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(3 * 2 * 5, dtype=np.uint8).reshape(3, 2, 5)


def test_idx_bytes_by_hand(tmp_path: Path) -> None:
    # Two images, one row of two pixels each.
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x02" + b"\0\0\0\x01" + b"\0\0\0\x02" + b"\x07\x08\xfe\xff")
    assert read_idx(path, 3).tolist() == [[[7, 8]], [[254, 255]]]


@pytest.mark.parametrize(
    "pattern", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte", "emnist-letters-{}-images-idx3-ubyte"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_folder(pattern: str, packed: bool, tmp_path: Path) -> None:
    for part, labels in (("train", [0, 1, 2]), ("t10k", [2, 2, 0])):
        name = pattern.format(part)
        for file, values in ((name, IMAGES), (name.replace("images", "labels").replace("3", "1"), labels)):
            content = gzip.compress(idx(values), mtime=0) if packed else idx(values)
            (tmp_path / (file + ".gz" * packed)).write_bytes(content)
    data = read_labelled(tmp_path, "image")
    assert data.inputs.dtype == torch.uint8
    assert tuple(data.inputs.shape) == (3, 1, 2, 5)
    assert data.inputs[:, 0].tolist() == IMAGES.tolist()
    assert data.labels.tolist() == [0, 1, 2]
    assert read_labelled(tmp_path, "image", split="test").labels.tolist() == [2, 2, 0]
    assert "has no split val, only train and test" in refused(tmp_path, split="val")


def idx_pair(root: Path, images: bytes = idx(IMAGES), labels: bytes = idx([0, 1, 2]), tail: str = "") -> Path:
    (root / f"train-images-idx3-ubyte{tail}").write_bytes(images)
    (root / f"train-labels-idx1-ubyte{tail}").write_bytes(labels)
    return root


def test_idx_names(tmp_path: Path) -> None:
    idx_pair(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"left over beside the unpacked file")
    assert len(read_labelled(tmp_path, "image")) == 3
    assert "0 IDX files of images for the split test" in refused(tmp_path, split="test")
    (tmp_path / "other-train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    assert "2 IDX files of images for the split train" in refused(tmp_path)


def test_idx_without_parts(tmp_path: Path) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(IMAGES))
    assert "no file of labels labels-idx1-ubyte" in refused(tmp_path)
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx([0, 1, 2]))
    for split in (None, "train", "test"):
        assert len(read_labelled(tmp_path, "image", split=split)) == 3


HEAD = idx(IMAGES)[:16]


@pytest.mark.parametrize(
    ("images", "labels", "fragment"),
    [
        (b"", idx([0, 1, 2]), "train-images-idx3-ubyte: no IDX file"),
        (HEAD[:9], idx([0, 1, 2]), "train-images-idx3-ubyte: no IDX file"),
        (b"\x01" + idx(IMAGES)[1:], idx([0, 1, 2]), "no IDX file of unsigned bytes in 3"),
        (b"\0\0\x0d\x03" + idx(IMAGES)[4:], idx([0, 1, 2]), "no IDX file of unsigned bytes in 3"),
        (idx(IMAGES[0]), idx([0, 1, 2]), "no IDX file of unsigned bytes in 3"),
        (idx(IMAGES)[:-1], idx([0, 1, 2]), "header says 30 bytes and 29 follow"),
        (idx(IMAGES) + b"\0", idx([0, 1, 2]), "header says 30 bytes and more follow"),
        (b"\0\0\x08\x03" + b"\xff" * 12, idx([0, 1, 2]), "truncated"),
        (idx(IMAGES), idx([0, 1]), "train-labels-idx1-ubyte: 2 labels for 3 images"),
        (idx(IMAGES), idx([[0, 1, 2]]), "train-labels-idx1-ubyte: no IDX file"),
        (idx(IMAGES), idx([1, 1, 1]), "all samples are of one class"),
        (idx(np.zeros((0, 2, 2))), idx([]), "no samples"),
        (idx(np.zeros((3, 0, 2))), idx([0, 1, 2]), "images of shape (3, 0, 2)"),
    ],
)
def test_bad_idx(images: bytes, labels: bytes, fragment: str, tmp_path: Path) -> None:
    assert fragment in refused(idx_pair(tmp_path, images, labels))


PACKED = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize("content", [b"plain", PACKED[:-12], PACKED[:12] + b"\xff" * 20, PACKED[:3], b""])
def test_bad_gzip(content: bytes, tmp_path: Path) -> None:
    message = refused(idx_pair(tmp_path, content, gzip.compress(idx([0, 1, 2]), mtime=0), ".gz"))
    assert message.startswith(f"{tmp_path / 'train-images-idx3-ubyte.gz'}: ")


# .npz


def npz(root: Path, **arrays: Any) -> Path:
    np.savez(root / "data.npz", **arrays)
    return root / "data.npz"


GREY = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
COLOUR = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, GREY[:, None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (GREY / 255, GREY[:, None]),
        ((COLOUR / 255).astype(np.float32), COLOUR),
        ((COLOUR / 255).astype(np.float16), COLOUR),
    ],
)
def test_npz(images: Any, expected: Any, tmp_path: Path) -> None:
    for keys in (("images", "labels"), ("x", "y")):
        data = read_labelled(npz(tmp_path, **dict(zip(keys, (images, [3, 0]), strict=True))), "image")
        assert data.inputs.dtype == torch.uint8
        assert data.inputs.is_contiguous()
        assert data.inputs.tolist() == expected.tolist()
        assert data.labels.tolist() == [3, 0]
        assert data.names == ()


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"images": GREY}, "no arrays 'images' and 'labels'"),
        ({"a": GREY, "b": [0, 1]}, "no arrays"),
        ({"x": GREY, "y": [0, 1, 2]}, "labels of shape (3,) for images of shape (2, 4, 5)"),
        ({"x": GREY, "y": [[0], [1]]}, "labels of shape (2, 1)"),
        ({"x": 3, "y": 1}, "labels of shape ()"),
        ({"x": 3, "y": [1]}, "images of shape ()"),
        ({"x": GREY, "y": [0.0, 1.0]}, "labels are float64"),
        ({"x": GREY, "y": [True, False]}, "labels are bool"),
        ({"x": GREY, "y": ["a", "b"]}, "labels are <U1"),
        ({"x": GREY, "y": [0, -1]}, "sample 2: label -1 is not a whole number from 0 on"),
        ({"x": GREY, "y": np.array([0, 2**64 - 1], dtype=np.uint64)}, "sample 2: label 18446744073709551615"),
        ({"x": GREY, "y": [1, 1]}, "data.npz: all samples are of one class"),
        ({"x": GREY[:0], "y": np.zeros(0, dtype=int)}, "no samples"),
        ({"x": GREY.astype(int), "y": [0, 1]}, "images are int64"),
        ({"x": GREY.astype(float), "y": [0, 1]}, "floats that are not in 0 to 1"),
        ({"x": GREY / 255 - 0.01, "y": [0, 1]}, "floats that are not in 0 to 1"),
        ({"x": np.full((2, 4, 4), np.nan), "y": [0, 1]}, "floats that are not in 0 to 1"),
        ({"x": GREY[0], "y": [0, 1, 2, 3]}, "images of shape (4, 5)"),
        ({"x": GREY[..., None, None], "y": [0, 1]}, "images of shape (2, 4, 5, 1, 1)"),
        ({"x": GREY[:, :0], "y": [0, 1]}, "images of shape (2, 0, 5)"),
        ({"x": np.zeros((2, 3, 3, 3), dtype=np.uint8), "y": [0, 1]}, "cannot be told"),
        ({"x": np.array([GREY, None], dtype=object), "y": [0, 1]}, "no .npz file that can be read"),
    ],
)
def test_bad_npz(arrays: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    path = npz(tmp_path, **arrays)
    message = refused(path)
    assert fragment in message
    assert message.startswith(str(path))


def test_npz_that_is_none(tmp_path: Path) -> None:
    whole = npz(tmp_path, x=GREY, y=[0, 1]).read_bytes()
    np.save(tmp_path / "array.npy", GREY)
    for content in (b"", b"zip", whole[:-30], whole[:100], (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "data.npz").write_bytes(content)
        assert "data.npz: " in refused(tmp_path / "data.npz")
    assert "no such file" in refused(tmp_path / "gone.npz")


# Digits


def test_digits() -> None:
    train, test = read_labelled("digits", "image"), read_labelled("digits", "image", split="test")
    assert tuple(train.inputs.shape[1:]) == tuple(test.inputs.shape[1:]) == (1, 8, 8)
    assert len(train) + len(test) == 1797
    # 178, 182, 177, 183, 181, 182, 181, 179, 174 and 180 digits, of which every fifth.
    assert torch.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert train.inputs.dtype == torch.uint8
    assert (int(train.inputs.min()), int(train.inputs.max())) == (0, 255)
    assert train.names == tuple("0123456789")
    assert torch.equal(read_labelled("digits:test", "image", split="train").inputs, test.inputs)
    # The first image of scikit-learn begins with the row 0 0 5 13 9 1 0 0 of sixteenths.
    assert train.inputs[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert "has no split val" in refused("digits", split="val")
    assert "holds images, but the model takes texts" in refused("digits", "text")


def test_every_fifth() -> None:
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1])
    assert np.flatnonzero(every_fifth(labels)).tolist() == [6, 10]


# Data sets


def shades(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 3), (k, 0, 0)) for k in range(count)]


def dataset(columns: dict[str, Any], **kinds: Any) -> Any:
    """Return a data set; a kind is `image`, a type such as int64, or the names of classes."""
    import datasets as d

    def feature(kind: Any) -> Any:
        if kind == "image":
            return d.Image()
        return d.Value(kind) if isinstance(kind, str) else d.ClassLabel(names=list(kind))

    return d.Dataset.from_dict(columns, features=d.Features({c: feature(kinds[c]) for c in columns}))


def hub(monkeypatch: pytest.MonkeyPatch, made: Any) -> list[tuple[str, str]]:
    import datasets

    asked: list[tuple[str, str]] = []

    def fake(name: str, split: str) -> Any:
        asked.append((name, split))
        return made

    monkeypatch.setattr(datasets, "load_dataset", fake)
    return asked


def test_dataset_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dataset(
        {"img": shades(3), "coarse_label": [0, 0, 0], "fine_label": [1, 0, 1]},
        img="image",
        fine_label=("ant", "bee"),
        coarse_label=("insect", "bird"),
    )
    hub(monkeypatch, made)
    data = read_labelled("some/set", "image")
    assert isinstance(data.inputs, Lazy)
    assert data.labels.tolist() == [1, 0, 1]
    assert data.names == ("ant", "bee")
    assert reds(data.inputs) == [0, 1, 2]
    assert reds(take(data, torch.tensor([2, 0])).inputs) == [2, 0]
    assert read_labelled("some/set", "image", names=("x", "y")).labels.tolist() == [1, 0, 1]
    mine = read_labelled("some/set", "image", names=("bee", "cow", "ant"))
    assert (mine.labels.tolist(), mine.names) == ([0, 2, 0], ("bee", "cow", "ant"))


@pytest.mark.parametrize(
    ("source", "split", "expected"),
    [
        ("cifar10", None, ("uoft-cs/cifar10", "train")),
        ("cifar100:test", None, ("uoft-cs/cifar100", "test")),
        ("fashion-mnist", "test", ("zalando-datasets/fashion_mnist", "test")),
        ("mnist:train[:100]", "test", ("ylecun/mnist", "train[:100]")),
        ("gtsrb", None, ("tanganke/gtsrb", "train")),
        ("tiny-imagenet", "test", ("zh-plus/tiny-imagenet", "valid")),
        ("tiny-imagenet", None, ("zh-plus/tiny-imagenet", "train")),
        ("me/mine:dev", None, ("me/mine", "dev")),
    ],
)
def test_names_and_splits(
    source: str, split: str | None, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch, dataset({"image": shades(2), "label": [0, 1]}, image="image", label=("a", "b")))
    assert len(read_labelled(source, "image", split=split)) == 2
    assert asked == [expected]


def test_saved_datasets(tmp_path: Path) -> None:
    import datasets

    made = dataset({"picture": shades(4), "kind": [0, 1, 1, 0]}, picture="image", kind=("a", "b"))
    made.save_to_disk(tmp_path / "one")
    parts = {"train": made, "test": made.select([0, 1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "all")
    for source in (tmp_path / "one", str(tmp_path / "all")):
        data = read_labelled(source, "image")
        assert data.labels.tolist() == [0, 1, 1, 0]
        assert reds(data.inputs) == [0, 1, 2, 3]
    assert len(read_labelled(tmp_path / "all", "image", split="test")) == 2
    assert "has no split dev, only train, test" in refused(tmp_path / "all", split="dev")
    assert "which column holds the texts" in refused(tmp_path / "one", "text")
    (tmp_path / "one" / "state.json").write_text("{")
    assert "no data set that loads" in refused(tmp_path / "one")


def test_dataset_images_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(picture(tmp_path / f"{n}.png", n)) for n in range(2)]
    hub(monkeypatch, dataset({"image": paths, "label": [0, 1]}, image="image", label="int64"))
    data = read_labelled("some/set", "image")
    assert (reds(data.inputs), data.names) == ([0, 1], ())


@pytest.mark.parametrize(
    ("columns", "kinds", "fragment"),
    [
        ({"label": [0, 1]}, {"label": "int64"}, "which column holds the images"),
        ({"image": [0, 1], "label": [0, 1]}, {"image": "int64", "label": "int64"}, "the images"),
        ({"a": shades(2), "b": shades(2), "label": [0, 1]}, {"a": "image", "b": "image", "label": "int64"}, "images"),
        ({"image": shades(2), "number": [0, 1]}, {"image": "image", "number": "int64"}, "holds the labels"),
        ({"image": shades(2), "label": [0, -1]}, {"image": "image", "label": "int64"}, "sample 2: label -1"),
        ({"image": shades(2), "label": [0, -1]}, {"image": "image", "label": "ab"}, "sample 2: label -1"),
        ({"image": shades(2), "label": [0, None]}, {"image": "image", "label": "int64"}, "sample 2: label None"),
        ({"image": shades(2), "label": [0, 0.5]}, {"image": "image", "label": "float64"}, "sample 1: label 0.0"),
        ({"image": shades(2), "label": [1, 1]}, {"image": "image", "label": "int64"}, "of one class"),
        ({"image": [], "label": []}, {"image": "image", "label": "int64"}, "no samples"),
    ],
)  # fmt: skip
def test_bad_datasets(
    columns: dict[str, Any], kinds: dict[str, Any], fragment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {c: ("a", "b") if k == "ab" else k for c, k in kinds.items()}
    hub(monkeypatch, dataset(columns, **kinds))
    message = refused("some/set")
    assert message.startswith("some/set: ")
    assert fragment in message


def test_bad_images_in_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [None, {"bytes": b"no image", "path": None}, {"bytes": None, "path": "/nowhere.png"}]
    hub(monkeypatch, dataset({"image": cells, "label": [0, 1, 0]}, image="image", label="int64"))
    data = read_labelled("some/set", "image")
    for n, fragment in enumerate(["has no image", "none of PNG", "nowhere.png"]):
        with pytest.raises(InputError, match=rf"^some/set: sample {n + 1}.*{fragment}.*$"):
            data.inputs[n]


@pytest.mark.parametrize("task", ["image", "text"])
@pytest.mark.parametrize("source", ["cifar10", "no-such-set-anywhere:test"])
def test_offline(source: str, task: str) -> None:
    assert refused(source, task).startswith(f"{source}: neither a file nor a data set that loads (")


def test_dataset_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"sentence": ["good", "bad", "fine"], "label": [1, 0, 1]}
    hub(monkeypatch, dataset(columns, sentence="string", label=("negative", "positive")))
    data = read_labelled("stanfordnlp/sst2", "text", split="validation")
    assert data.inputs == ["good", "bad", "fine"]
    assert (data.labels.tolist(), data.names) == ([1, 0, 1], ("negative", "positive"))
    mine = read_labelled("stanfordnlp/sst2", "text", names=("positive", "negative"))
    assert mine.labels.tolist() == [0, 1, 0]
    assert "which column holds the images" in refused("stanfordnlp/sst2")
    hub(monkeypatch, dataset({"text": ["a", "b"], "label": ["x", "w"]}, text="string", label="string"))
    assert read_labelled("me/mine", "text").names == ("w", "x")
    hub(monkeypatch, dataset({"text": ["a", None], "label": [0, 1]}, text="string", label="int64"))
    assert "me/mine: sample 2: 'text' must be a text" in refused("me/mine", "text")


def test_label_beyond_the_names() -> None:
    with pytest.raises(InputError, match="here: label 2, but it names the classes 0 to 1 only"):
        hub_sets.follow([0, 2], ("a", "b"), (), "here")


# Texts


def text_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(f'"{v}"' for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize("key", ["text", "sentence"])
def test_texts(key: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    text_file(path, [{key: "Fine, really", "label": 1}, {key: "Bad\nthing", "label": 0}])
    data = read_labelled(path, "text")
    assert data.inputs == ["Fine, really", "Bad\nthing"]
    assert (data.labels.tolist(), data.names, data.source) == ([1, 0], (), str(path))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("labels", "names", "numbers", "known"),
    [
        (["pos", "neg", "pos"], (), [1, 0, 1], ("neg", "pos")),
        (["pos", "neg", "pos"], ("pos", "x", "neg"), [0, 2, 0], ("pos", "x", "neg")),
        (["10", "9", "10"], (), [10, 9, 10], ()),
        (["1", "2", "1"], ("1", "2", "3"), [0, 1, 0], ("1", "2", "3")),
        (["0", "1", "0"], ("no", "yes"), [0, 1, 0], ()),
        (["3 stars", "1 star", "1 star"], (), [1, 0, 0], ("1 star", "3 stars")),
    ],
)
def test_labels_that_are_names(
    labels: list[str],
    names: tuple[str, ...],
    numbers: list[int],
    known: tuple[str, ...],
    suffix: str,
    tmp_path: Path,
) -> None:
    path = text_file(tmp_path / f"d{suffix}", [{"text": "a", "label": label} for label in labels])
    data = read_labelled(path, "text", names=names)
    assert (data.labels.tolist(), data.names) == (numbers, known)


def test_csv_of_spreadsheets(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes('\ufeffid, label ,text\r\n7, 1 ,"a ""b"", c"\r\n\r\n8,0,d\r\n'.encode())
    data = read_labelled(path, "text")
    assert (data.inputs, data.labels.tolist()) == (['a "b", c', "d"], [1, 0])


OK = '{"text": "a", "label": 0}\n'


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("d.jsonl", f"{OK}{{broken", ["d.jsonl:2", "broken JSON"]),
        ("d.jsonl", f"{OK}3", ["d.jsonl:2", "expected an object"]),
        ("d.jsonl", f'{OK}{{"text": "b"}}', ["d.jsonl:2", "needs text (or sentence) and label, has text"]),
        ("d.jsonl", f'{OK}{{"label": 1}}', ["d.jsonl:2", "needs text"]),
        ("d.jsonl", f"{OK}{{}}", ["d.jsonl:2", "has nothing"]),
        ("d.jsonl", f'{OK}{{"text": 4, "label": 1}}', ["d.jsonl:2", "'text' must be a text"]),
        ("d.jsonl", f'{OK}{{"text": " ", "label": 1}}', ["d.jsonl:2", "not empty"]),
        ("d.jsonl", f'{OK}\n{{"text": "b", "label": -1}}', ["d.jsonl:3", "label -1 is not a whole number"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": 1.5}}', ["d.jsonl:2", "label 1.5"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": 1.0}}', ["d.jsonl:2", "label 1.0"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": NaN}}', ["d.jsonl:2", "label nan"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": true}}', ["d.jsonl:2", "label True"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": null}}', ["d.jsonl:2", "'label' must not be empty"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": [1]}}', ["d.jsonl:2", "label [1]"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": "x"}}', ["d.jsonl:2", "label 'x'"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": {"9" * 30}}}', ["d.jsonl:2", "label 9999"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": {"9" * 9999}}}', ["d.jsonl:2", "a number too long"]),
        ("d.jsonl", f'{OK}{{"text": "b", "label": "{"x" * 999}"}}', ["d.jsonl:2", "xxx..."]),
        ("d.jsonl", OK + OK, ["d.jsonl: all samples are of one class"]),
        ("d.jsonl", "", ["d.jsonl", "empty"]),
        ("d.jsonl", b"\xff\xfe\x00", ["d.jsonl", "cannot be read"]),
        ("d.json", '[\n{"text": "b", "label": 1},\n{"text"]', ["d.json:3", "broken JSON"]),
        (
            "d.json",
            '[{"text": "b", "label": 1}, {"text": "c", "label": -2}]',
            ["d.json: sample 2", "label -2"],
        ),
        ("d.json", "[]", ["d.json: no samples"]),
        ("d.json", "[" * 200_000, ["d.json:1", "nested too deep"]),
        ("d.csv", "", ["d.csv: no samples"]),
        ("d.csv", "text,label\n", ["d.csv: no samples"]),
        ("d.csv", "good,1\nbad,0\n", ["d.csv:2", "needs text (or sentence) and label, has good, 1"]),
        ("d.csv", "text,label\na,0\nb,-1\n", ["d.csv:3", "label '-1' is not a whole number"]),
        ("d.csv", "text,label\na,0\nb,1.0\n", ["d.csv:3", "label '1.0'"]),
        ("d.csv", "text,label\na,0\nb,pos\n", ["d.csv:3", "label 'pos'"]),
        ("d.csv", "text,label\na,0\nb,\n", ["d.csv:3", "'label' must not be empty"]),
        ("d.csv", "text,label\na,0\n,1\n", ["d.csv:3", "'text' must be a text that is not empty"]),
        ("d.csv", "text,label\na,0\nwell, no,1\n", ["d.csv:3", "3 cells, but the header has 2"]),
        ("d.csv", "text,label\na,0\nb\n", ["d.csv:3", "1 cells"]),
        ("d.csv", 'text,label\na,0\n"b"c,1\n', ["d.csv:3", "broken CSV"]),
        ("d.csv", 'text,label\na,0\n"b,1\n', ["d.csv:3", "broken CSV"]),
        ("d.csv", f"text,label\na,0\n{'b' * 200_000},1\n", ["d.csv:3", "broken CSV"]),
        ("d.csv", b"text,label\n\xff\xfe,0\n", ["d.csv", "cannot be read"]),
        ("d.csv", "text,label\na,0\nb,0\n", ["d.csv: all samples are of one class"]),
    ],
)
def test_errors_name_file_and_line(
    name: str, content: str | bytes, fragments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(path, "text")
    assert all(f in message for f in [str(tmp_path), *fragments])
    assert len(message) < len(str(tmp_path)) + 300


def test_unknown_name_of_a_class(tmp_path: Path) -> None:
    path = text_file(tmp_path / "d.jsonl", [{"text": "a", "label": n} for n in ("pos", "neg", "so-so")])
    message = refused(path, "text", names=("neg", "pos"))
    assert message == f"{path}:3: label 'so-so' is none of the model's classes neg, pos"


@pytest.mark.parametrize(
    ("name", "task", "fragment"),
    [
        ("d.csv", "image", "holds texts, but the model takes images"),
        ("d.npz", "text", "holds images, but the model takes texts"),
        ("gone.csv", "text", "no such file"),
        ("gone.jsonl", "text", "no such file"),
        ("gone", "image", "no such file or folder"),
        ("d.bin", "image", "a file of unknown kind"),
        ("", "text", "a directory"),
    ],
)
def test_sources_of_another_kind(name: str, task: str, fragment: str, tmp_path: Path) -> None:
    npz(tmp_path, x=GREY, y=[0, 1]).rename(tmp_path / "d.npz")
    text_file(tmp_path / "d.csv", [{"text": "a", "label": 0}])
    (tmp_path / "d.bin").write_bytes(b"x")
    assert fragment in refused(tmp_path / name, task)


# Draws


def made(labels: list[int], inputs: Any = None) -> Labelled:
    return Labelled(inputs, torch.tensor(labels), source="here")


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10], 4, [2, 2]),
        ([10, 10], 5, [3, 2]),  # 2.5 and 2.5: the first of equal remainders
        ([50, 30, 20], 7, [4, 2, 1]),  # 3.5, 2.1, 1.4
        ([60, 25, 15], 10, [6, 3, 1]),  # 6, 2.5, 1.5
        ([97, 2, 1], 10, [8, 1, 1]),  # 9.7, 0.2, 0.1: the floors 9, 0, 0, then 10, 0, 0, then two given away
        ([5, 1, 1], 3, [1, 1, 1]),
        ([4, 2, 3], 9, [4, 2, 3]),
        ([1, 1000], 2, [1, 1]),
    ],
)
def test_quotas(sizes: list[int], count: int, expected: list[int]) -> None:
    assert quotas(sizes, count) == expected


def test_quotas_hold_for_every_count() -> None:
    for sizes in ([1, 1], [7, 1, 30], [178, 182, 177, 3, 1, 1], [1, 2, 3, 4, 5]):
        for count in range(len(sizes), sum(sizes) + 1):
            shares = quotas(sizes, count)
            assert sum(shares) == count
            assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))


def test_sample() -> None:
    labels = [7] * 60 + [2] * 25 + [4] * 15
    data = made([labels[k] for k in np.random.default_rng(0).permutation(100)])
    drawn, rest = sample(data, 10, seed=1)
    assert torch.bincount(data.labels[drawn], minlength=8).tolist() == [0, 0, 3, 0, 1, 0, 0, 6]
    assert drawn.tolist() == sorted(drawn.tolist())
    assert rest.tolist() == sorted(set(range(100)) - set(drawn.tolist()))
    assert torch.equal(drawn, sample(data, 10, seed=1)[0])
    assert not torch.equal(drawn, sample(data, 10, seed=2)[0])
    drawn, rest = sample(data, 100, seed=0)
    assert (drawn.tolist(), rest.tolist(), rest.dtype) == (list(range(100)), [], torch.int64)


def test_sample_does_not_touch_the_global_generator() -> None:
    state = torch.get_rng_state()
    sample(made([0, 1] * 20), 10, seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_every_sample_is_drawn_by_some_seed() -> None:
    data = made([0] * 6 + [1] * 6)
    assert {int(k) for seed in range(40) for k in sample(data, 4, seed)[0]} == set(range(12))


@pytest.mark.parametrize(
    ("count", "fragment"),
    [(2, "here: fewer samples than classes"), (0, "fewer"), (-1, "fewer"), (7, "it holds 6")],
)
def test_bad_counts(count: int, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        sample(made([0, 1, 5, 5, 1, 0]), count, seed=0)


def test_take() -> None:
    data = Labelled(torch.arange(4).view(4, 1, 1, 1), torch.tensor([0, 1, 2, 3]), ("a", "b"), "here")
    part = take(data, torch.tensor([3, 1]))
    assert part.inputs.flatten().tolist() == part.labels.tolist() == [3, 1]
    assert (part.names, part.source) == (("a", "b"), "here")
    assert take(data, torch.tensor([True, False, False, True])).labels.tolist() == [0, 3]
    assert take(made([0, 1], ["x", "y"]), torch.tensor([1])).inputs == ["y"]
    assert take(made([0, 1], ("x", "y")), torch.tensor([1])).inputs == ["y"]
    assert len(take(data, torch.tensor([], dtype=torch.int64))) == 0
    other = take(made([0, 1, 2], range(10, 13)), torch.tensor([2, 0])).inputs
    assert isinstance(other, Lazy)
    assert list(other) == [12, 10]
    assert list(take(made([0, 1], other), torch.tensor([1])).inputs) == [10]
