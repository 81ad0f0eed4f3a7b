"""Classifiers: what is measured, on which samples, and the Python calls from end to end."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import detrojan
from detrojan import api
from detrojan.attacks.image.plant import PlantOptions
from detrojan.attacks.text import labels as text_labels
from detrojan.attacks.text.triggers import Trigger
from detrojan.data.held_out import HELD_OUT_AT_MOST, read_samples, split_samples
from detrojan.data.labelled import read_labelled
from detrojan.errors import InputError
from detrojan.fitting import batches, classification_loss, fit
from detrojan.metrics.classification import der, measure_classifier
from detrojan.metrics.margin import frozen, margins
from detrojan.models.classifier import load_classifier
from detrojan.models.zoo import new_classifier
from detrojan.types import Classifier, ClassifierResult, Interval, Labelled, Probe, Rows, Run

from pico import pico_tokenizer
from pico_classifiers import as_pil, opinions, pictures, save_image_model, save_text_model

QUICK = {"epochs": 2, "learning_rate": 0.05, "batch_size": 64}
UNLEARN = {"locate": "share", "unlearn_epochs": 1, "epochs": 2}


def linear(weight: Any, bias: Any = None, shape: tuple[int, int, int] = (3, 1, 1)) -> Classifier:
    """Return a classifier of images whose logits are weight x pixels + bias."""
    weight = torch.as_tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.tensor(bias))
    names = tuple(map(str, range(len(weight))))
    return Classifier(
        nn.Sequential(nn.Flatten(), layer), "image", "1", names, "toy", torch.float32, shape=shape
    )


def saying(*classes: int) -> Rows:
    """Return images that `linear(torch.eye(3))` takes for these classes; their labels are all 0."""
    images = torch.eye(3)[list(classes)].view(-1, 3, 1, 1)
    return Rows({"pixel_values": images}, torch.zeros(len(classes), dtype=torch.int64))


def wilson(hits: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


# What is measured


def test_measured_by_hand() -> None:
    """Samples of the target class count for accuracy alone: the trigger is not even put on them."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    clean = dataclasses.replace(saying(0, 1, 1, 1, 2, 0), labels=labels)
    triggered = dict(zip(range(2, 6), (0, 1, 0, 2), strict=True))  # two drawn to 0, two still their own class

    def put_on(index: Tensor) -> Rows:
        rows = saying(*(triggered[k] for k in index.tolist()))
        return dataclasses.replace(rows, labels=labels[index])

    result = measure_classifier(linear(torch.eye(3)), clean, Probe(torch.zeros_like(labels), put_on))
    assert (result.accuracy, result.n_clean) == (4 / 6, 6)
    assert (result.asr, result.recovery_accuracy, result.n_triggered) == (0.5, 0.5, 4)
    assert result.per_class == (0.5, 1.0, 0.5) and result.classes == ("0", "1", "2")
    for interval, hits, n in ((result.accuracy_interval, 4, 6), (result.asr_interval, 2, 4)):
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx(wilson(hits, n))
    assert result.recovery_interval == result.asr_interval
    assert (result.der, result.reference) == (None, None)


def test_all_to_all_counts_every_sample() -> None:
    labels = torch.tensor([0, 1, 2])
    clean = dataclasses.replace(saying(0, 1, 2), labels=labels)
    probe = Probe((labels + 1) % 3, lambda index: saying(*((index + 1) % 3).tolist()))
    result = measure_classifier(linear(torch.eye(3)), clean, probe)
    assert (result.asr, result.recovery_accuracy, result.n_triggered) == (1.0, 0.0, 3)


def test_nothing_to_trigger() -> None:
    clean = saying(0, 0, 1)  # all are of class 0, the target
    probe = Probe(clean.labels, lambda index: pytest.fail("no sample to put it on"))
    result = measure_classifier(linear(torch.eye(3)), clean, probe)
    assert (result.accuracy, result.n_triggered, result.asr, result.recovery_accuracy) == (
        2 / 3,
        0,
        None,
        None,
    )
    assert result.asr_interval == Interval(0.0, 1.0)
    assert result.per_class == (2 / 3, None, None)


def test_measured_in_parts() -> None:
    """More triggered samples than are held at once, and batches of any size."""
    n = 1201
    labels = torch.arange(n) % 3
    clean = dataclasses.replace(saying(*labels.tolist()), labels=labels)
    probe = Probe(torch.zeros_like(labels), lambda index: saying(*(index % 2).tolist()))
    result = measure_classifier(linear(torch.eye(3)), clean, probe, batch_size=7)
    counted = [k for k in range(n) if k % 3]
    assert (result.accuracy, result.n_triggered) == (1.0, len(counted))
    assert result.asr == sum(k % 2 == 0 for k in counted) / len(counted)
    assert result.recovery_accuracy == sum(k % 2 == 1 and k % 3 == 1 for k in counted) / len(counted)


def result_of(asr: float | None, accuracy: float) -> ClassifierResult:
    return ClassifierResult("m", accuracy, Interval(0, 1), 10, asr=asr)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1.0, 0.9), (0.1, 0.8), (0.9 - 0.1 + 1) / 2),
        ((1.0, 0.9), (0.0, 0.9), 1.0),
        ((0.2, 0.9), (0.5, 0.95), 0.5),  # a rise of either counts for nothing
        ((0.2, 0.9), (0.5, 0.4), 0.25),
        ((1.0, 1.0), (1.0, 0.0), 0.0),
        ((None, 0.9), (0.5, 0.4), None),
        ((0.5, 0.9), (None, 0.4), None),
    ],
)
def test_defense_effectiveness(
    before: tuple[float | None, float], after: tuple[float | None, float], expected: float | None
) -> None:
    assert der(result_of(*before), result_of(*after)) == pytest.approx(expected)


def test_result_as_json() -> None:
    result = result_of(0.5, 0.9).replace(asr_interval=Interval(0.4, 0.6), per_class=(0.5, None))
    data = json.loads(json.dumps(result.to_json()))
    assert {"accuracy", "asr", "recovery_accuracy", "n_clean", "n_triggered", "der"} <= set(data)
    assert (data["asr_interval"], data["per_class"]) == ([0.4, 0.6], [0.5, None])


# Margins


def test_margins() -> None:
    scores = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    assert margins(scores, torch.tensor([1, 2, 0])).tolist() == [2.0, -2.0, 0.0]


def test_frozen_restores_flags() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    model[1].eval()
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        raise RuntimeError("inside")
    assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == flags


# Which samples


def numbered(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return samples that are their own positions, and labels with so many of each class, mixed."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    return torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1), labels


@pytest.mark.parametrize("samples", [None, 3, 20, 77, 1000])
@pytest.mark.parametrize("sizes", [[50, 50], [90, 9, 1], [4, 4, 4], [200, 40, 8]])
@pytest.mark.parametrize("seed", [0, 1])
def test_split_never_overlaps(sizes: list[int], samples: int | None, seed: int) -> None:
    images, labels = numbered(sizes)
    split = split_samples((images, labels), "image", (), samples=samples, held_out=True, seed=seed)
    assert split.held_out is not None
    train, test = (set(d.inputs.flatten().int().tolist()) for d in (split.train, split.held_out))
    assert not train & test
    assert train | test == set(range(len(labels)))  # what is not trained on is measured
    assert len(test) >= max(sum(sizes) // 5, len(sizes))
    assert samples is None or len(train) <= samples
    for data in (split.train, split.held_out):
        assert torch.equal(labels[data.inputs.flatten().long()], data.labels)
    shares = [(split.train.labels == k).sum().item() / size for k, size in enumerate(sizes)]
    whole = len(train) / sum(sizes)
    for share, size in zip(shares, sizes, strict=True):
        assert share > 0 and (abs(share - whole) * size < 2 or share * size == 1)


def test_split_without_measuring_uses_all() -> None:
    images, labels = numbered([30, 10])
    split = split_samples((images, labels), "image", (), samples=None, held_out=False, seed=0)
    assert (len(split.train), split.held_out) == (40, None)
    split = split_samples((images, labels), "image", (), samples=4, held_out=False, seed=0)
    assert torch.bincount(split.train.labels).tolist() == [3, 1]


def test_split_depends_on_its_seed_alone() -> None:
    data = numbered([30, 10])
    drawn = [
        split_samples(data, "image", (), samples=8, held_out=True, seed=s).train.inputs for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_own_test_part_is_measured() -> None:
    split = split_samples("digits", "image", (), samples=50, held_out=True, seed=0)
    test = read_labelled("digits", "image", split="test")
    assert len(split.train) == 50 and split.held_out is not None
    assert torch.equal(split.held_out.inputs, test.inputs)
    assert split.origin == "the test part of the data"
    # One part by name has no other: a fifth of it is kept back.
    split = split_samples("digits:test", "image", (), samples=None, held_out=True, seed=0)
    assert split.held_out is not None and len(split.train) + len(split.held_out) == len(test)
    assert split.origin == "samples of the data that were kept back"


def test_measured_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HELD_OUT_AT_MOST == 10_000
    monkeypatch.setattr("detrojan.data.held_out.HELD_OUT_AT_MOST", 30)
    split = split_samples(numbered([90, 30]), "image", (), samples=10, held_out=True, seed=0)
    assert split.held_out is not None
    assert torch.bincount(split.held_out.labels).tolist() == [23, 7] or len(split.held_out) == 30


def folder(path: Path, **parts: list[str]) -> Path:
    """Write FOLDER/PART/CLASS/IMAGE with three images of each class."""
    for part, classes in parts.items():
        for name in classes:
            (path / part / name).mkdir(parents=True)
            for k, image in enumerate(as_pil(pictures(3))):
                image.save(path / part / name / f"{k}.png")
    return path


def test_broken_test_part_is_not_passed_over(tmp_path: Path) -> None:
    good = folder(tmp_path / "good", train=["cat", "dog"], test=["cat", "dog", "owl"])
    names = ("cat", "dog", "owl")
    assert len(read_samples(str(good), "image", names, split="test")[0]) == 9
    broken = folder(tmp_path / "broken", train=["cat", "dog"], test=["cat", "fox"])
    with pytest.raises(InputError, match="fox"):
        read_samples(str(broken), "image", names, split="test")
    alone = folder(tmp_path / "alone", train=["cat", "dog"])
    assert len(read_samples(str(alone), "image", names, split="test")[0]) == 6


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        ((torch.zeros(4, 1, 2, 2), torch.zeros(3)), "of equal length"),
        ((torch.zeros(4, 1, 2, 2), torch.zeros(4)), "labels are torch.float32, expected whole numbers"),
        ((torch.zeros(4, 1, 2, 2), ["a", "b", "c", "d"]), "of equal length, the labels as whole numbers"),
        ((torch.zeros(4, 1, 2, 2),), "give a file, folder or data set name"),
        (5, "give a file, folder or data set name"),
        ((torch.zeros(4, 1, 2, 2), torch.ones(4).long()), "all samples are of one class"),
        ((torch.zeros(4, 1, 2, 2), torch.arange(4)), r"fewer samples than classes \(0 of 4 classes\)"),
    ],
)
def test_data_that_is_refused(data: Any, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        split_samples(data, "image", (), samples=None, held_out=True, seed=0)


def test_arrays_and_lists_are_data() -> None:
    images, labels = numbered([6, 6])
    split = split_samples(
        (images.numpy(), labels.tolist()), "image", (), samples=None, held_out=False, seed=0
    )
    assert torch.equal(split.train.inputs, images) and torch.equal(split.train.labels, labels)


# Training


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (8, [4, 4]), (6, [4, 2]), (1, [1]), (5, [5])])
def test_no_sample_is_left_alone(count: int, sizes: list[int]) -> None:
    """Batch norm cannot be trained on a single sample, so the last one joins the batch before it."""
    rows = Rows({"x": torch.arange(count)}, torch.arange(count))
    for epoch in (list(batches(rows, 4, 1, 0)), list(batches(rows, 4, 2, 0))[len(sizes) :]):
        assert [len(b) for b in epoch] == sizes
        assert sorted(torch.cat([b.labels for b in epoch]).tolist()) == list(range(count))


def test_fit_with_one_sample_too_many() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    classifier = linear(torch.eye(3)).replace(model=module)
    steps: list[tuple[int, int]] = []
    run = Run(progress=lambda _label, done, total: steps.append((done, total)))
    fit(classifier, saying(0, 1, 2, 0, 1), run, learning_rate=0.1, epochs=2, batch_size=2)
    assert steps == [(k, 4) for k in range(1, 5)]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="all of its weights are frozen"):
        fit(classifier, saying(0, 1), run, learning_rate=0.1, epochs=1)


def test_loss_by_hand() -> None:
    rows = dataclasses.replace(saying(0, 1), labels=torch.tensor([0, 2]))
    value = classification_loss(linear(torch.eye(3)), rows)
    expected = [-math.log(math.e / (math.e + 2)), -math.log(1 / (math.e + 2))]
    assert value.item() == pytest.approx(sum(expected) / 2)


# The calls, on digits


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = read_labelled("digits", "image", split="test")
    return data.inputs, data.labels


@pytest.fixture(scope="module")
def cleaned(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> detrojan.CleanResult:
    out = tmp_path_factory.mktemp("cleaned") / "out"
    return api.clean(
        digits_dir / "bad", data="digits", samples=200, attack=digits_dir / "bad", out=out, epochs=8
    )


def test_attack_takes(digits_dir: Path) -> None:
    manifest = json.loads((digits_dir / "bad" / "detrojan.json").read_text())
    assert manifest["after"]["asr"] > 0.9 and manifest["after"]["accuracy"] > 0.9
    assert manifest["before"]["accuracy"] < 0.5  # it was trained from nothing
    assert (manifest["kind"], manifest["task"], manifest["architecture"]) == (
        "attack",
        "image",
        "preact-resnet8",
    )
    assert (manifest["trigger"]["name"], manifest["mode"], manifest["target"]) == ("badnets", "all-to-one", 0)
    assert manifest["measured_on"] == "the test part of the data"
    assert manifest["after"]["n_triggered"] < manifest["after"]["n_clean"]
    assert manifest["options"]["poison_rate"] == 0.1 and manifest["samples"] > 1000
    good = api.evaluate(digits_dir / "good", data="digits", attack=digits_dir / "bad")
    assert isinstance(good, ClassifierResult)
    assert good.accuracy > 0.9 and good.asr is not None and good.asr < 0.1


def test_clean_removes_it(cleaned: detrojan.CleanResult, digits_dir: Path) -> None:
    before, after = cleaned.before, cleaned.after
    assert isinstance(before, ClassifierResult) and isinstance(after, ClassifierResult)
    assert before.asr is not None and after.asr is not None
    assert (cleaned.defense, cleaned.samples, cleaned.notes["suspicious"]) == ("ulrl", 200, [0])
    assert before.asr > 0.9 > 0.5 > after.asr and after.accuracy > 0.85
    assert after.der == pytest.approx(
        (before.asr - after.asr - max(0.0, before.accuracy - after.accuracy) + 1) / 2
    )
    # What was measured in memory is what a reader of the directory gets.
    again = api.evaluate(
        cleaned.out, data="digits", attack=digits_dir / "bad" / "detrojan.json", reference=digits_dir / "bad"
    )
    assert isinstance(again, ClassifierResult)
    assert (again.asr, again.accuracy, again.der, again.per_class) == (
        after.asr,
        after.accuracy,
        after.der,
        after.per_class,
    )


def test_output_directory_of_a_classifier(cleaned: detrojan.CleanResult, digits_dir: Path) -> None:
    out = cleaned.out
    assert out is not None
    names = {p.name for p in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "detrojan.json", "report.html"}
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    expected = cleaned.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    manifest = json.loads((out / "detrojan.json").read_text())
    assert {"command", "options", "seed", "versions", "inputs", "outputs", "before", "after"} <= set(manifest)
    assert manifest["samples_per_class"] == [20] * 10 or sum(manifest["samples_per_class"]) == 200
    assert manifest["attack"]["trigger"]["name"] == "badnets"
    assert set(manifest["inputs"]) == {"model.safetensors"}
    assert "detrojan.models.zoo" in (out / "README.md").read_text()
    assert "<html" in (out / "report.html").read_text()
    assert "trigger.safetensors" not in names or (digits_dir / "bad" / "trigger.safetensors").is_file()


def test_scan_names_the_class(digits_dir: Path) -> None:
    bad = api.scan(digits_dir / "bad", data="digits", samples=100)
    assert (bad.suspicious, bad.files, bad.found, bad.task) == ((0,), (), True, "image")
    assert len(bad.evidence) == len(bad.scores) == len(bad.classes) == 10
    assert bad.threshold is not None and bad.scores[0] > bad.threshold
    good = api.scan(digits_dir / "good", data="digits", samples=100)
    assert (good.suspicious, good.found) == ((), False)
    files_alone = detrojan.scan(digits_dir / "good")  # no package of that name takes its place
    assert (files_alone.classes, files_alone.found) == ((), False)


def test_objects_of_the_caller_stay_as_they_were(digits_dir: Path, digits: tuple[Tensor, Tensor]) -> None:
    model = AutoModelForImageClassification.from_pretrained(digits_dir / "bad").train()
    model.module.layer1.eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    data = tuple(t.clone() for t in digits)
    rng = torch.random.get_rng_state()
    result = api.clean(model, data=data, samples=60, **UNLEARN)
    api.attack(model, trigger="badnets", data=data, samples=60, epochs=1, target=1)
    api.evaluate(model, data=data, attack=digits_dir / "bad")
    api.scan(model, data=data, samples=60)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(data, digits, strict=True))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert result.model is not model and not result.model.training and result.out is None


def plain_module(normalised: bool) -> nn.Module:
    """A small network on 8 x 8 images; it normalises them itself, or takes them normalised."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
            self.last = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x if normalised else 2 * x - 1))

    torch.manual_seed(0)
    return Plain()


def test_plain_module_with_tensors(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    module, (images, labels) = plain_module(normalised=True), digits
    data = (images.float() / 255 * 2 - 1, labels)
    result = api.clean(
        module, defense="finetune", data=data, out=tmp_path / "out", epochs=20, learning_rate=0.1
    )
    before, after = result.before, result.after
    assert isinstance(before, ClassifierResult) and isinstance(after, ClassifierResult)
    assert before.accuracy < 0.4 and after.accuracy > 0.7
    assert after.n_clean + result.samples == len(labels)
    manifest = json.loads((tmp_path / "out" / "detrojan.json").read_text())
    assert (manifest["architecture"], manifest["model"]) == ("module", "Plain")
    from safetensors.torch import load_model

    fresh = plain_module(normalised=True)
    load_model(fresh, tmp_path / "out" / "model.safetensors")
    fresh.eval()
    with torch.no_grad():
        assert torch.equal(fresh(data[0][:5]), result.model(data[0][:5]))
    with pytest.raises(InputError, match=r"images from -1 to 1; a trigger is put on pixels in 0 to 1"):
        api.attack(module, trigger="badnets", data=data, **QUICK)


@pytest.mark.parametrize("form", ["floats", "bytes"])
def test_attack_on_a_plain_module(form: str, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    images, labels = digits
    data = (images.float() / 255 if form == "floats" else images, labels)
    training = {"epochs": 20, "learning_rate": 0.1, "batch_size": 32, "poison_rate": 0.2}
    result = api.attack(
        plain_module(normalised=False),
        trigger="badnets",
        data=data,
        target=3,
        out=tmp_path / "bad",
        **training,
    )
    after = result.after
    assert isinstance(after, ClassifierResult) and after.asr is not None
    assert after.accuracy > 0.7 and after.asr > 0.9
    found = api.evaluate(result.model, data=data, attack=tmp_path / "bad")
    assert isinstance(found, ClassifierResult) and found.asr is not None and found.asr > 0.9


def test_all_to_all_on_digits() -> None:
    result = api.attack(
        "new:preact-resnet8",
        trigger="badnets",
        data="digits",
        mode="all-to-all",
        poison_rate=0.3,
        epochs=5,
        learning_rate=0.05,
        batch_size=64,
    )
    after = result.after
    assert isinstance(after, ClassifierResult) and after.asr is not None
    assert after.n_triggered == after.n_clean and after.asr > 0.8 and after.accuracy > 0.85
    assert result.attack.mode == "all-to-all"


def bits(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_same_seed_same_bits() -> None:
    def both(seed: int) -> list[Tensor]:
        planted = api.attack(
            "new:preact-resnet8",
            trigger="badnets",
            data="digits",
            samples=150,
            seed=seed,
            measure_effect=False,
            **QUICK,
        )
        result = api.clean(
            planted.model, data="digits", samples=40, seed=seed, measure_effect=False, **UNLEARN
        )
        assert (planted.before, planted.after, result.before, result.after) == (None,) * 4
        return [*bits(planted.model), *bits(result.model)]

    one, again, other = both(1), both(1), both(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_measured_is_what_is_saved(tmp_path: Path) -> None:
    """A bfloat16 checkpoint is computed in float32, and rounded before it is measured."""
    source = save_image_model(tmp_path / "in", "resnet", torch.bfloat16)
    images = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = (images, torch.arange(30) % 3)
    result = api.clean(
        source, defense="finetune", data=data, out=tmp_path / "out", epochs=2, learning_rate=0.1
    )
    loaded = load_classifier(tmp_path / "out", device="cpu")
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(bits(loaded.model), bits(result.model), strict=True))


@pytest.mark.parametrize(
    ("call", "changes", "fragment"),
    [
        ("clean", {"data": None}, "needs --data"),
        ("evaluate", {"data": None}, "needs --data"),
        ("attack", {"data": None}, "needs --data"),
        ("clean", {"defense": "crow"}, "unknown defense 'crow'"),
        ("clean", {"template": "alpaca"}, "'template' .--template. is no option of clean on a classifier"),
        ("attack", {"behavior": "refusal"}, "'behavior' .--behavior. is no option of attack on a classifier"),
        ("attack", {"alfa": 1}, "unknown option of attack: 'alfa'"),
        ("attack", {"target": 10}, "--target of"),
        ("attack", {"target": "zero"}, "--target of"),
        ("attack", {"target": "\N{SUPERSCRIPT TWO}"}, "--target of"),
        ("attack", {"target": -1}, "--target of"),
        ("attack", {"poison_rate": 2}, "above the maximum"),
        ("attack", {"size": 0}, "below the minimum"),
        ("attack", {"trigger_text": "cf"}, "--trigger-text and --place are of triggers in texts"),
        ("attack", {"trigger": "vpi"}, "unknown trigger 'vpi'"),
        ("evaluate", {"attack": "gone"}, "gone: no detrojan.json"),
        (
            "evaluate",
            {"trigger": "badnets"},
            "'trigger' .--trigger. is no option of evaluate on a classifier",
        ),
        ("scan", {"threshold": -1}, "below the minimum"),
        ("clean", {"head": "module.conv1"}, "--head module.conv1: no linear layer of that name"),
    ],
)
def test_calls_that_are_refused(call: str, changes: dict[str, Any], fragment: str, digits_dir: Path) -> None:
    settings: dict[str, Any] = {
        "data": "digits",
        **({"trigger": "badnets"} if call == "attack" else {}),
        **changes,
    }
    with pytest.raises(InputError, match=fragment) as caught:
        getattr(api, call)(digits_dir / "good", **settings)
    assert "\n" not in str(caught.value)


def test_objects_that_are_refused(digits: tuple[Tensor, Tensor]) -> None:
    module = plain_module(normalised=False)
    with pytest.raises(InputError, match="needs its data as"):
        api.scan(module)
    with pytest.raises(InputError, match="needs --data"):
        api.scan(
            AutoModelForImageClassification.from_config(
                new_classifier("preact-resnet8", ("a", "b"), (1, 8, 8)).config
            )
        )
    with pytest.raises(InputError, match="only attack builds a new classifier"):
        api.clean("new:preact-resnet8", data=digits)
    with pytest.raises(InputError, match="did you mean 'preact-resnet8'"):
        api.attack("new:preact-resnet9", trigger="badnets", data="digits")
    with pytest.raises(InputError, match="needs images of one size"):
        api.attack("new:preact-resnet8", trigger="badnets", data=(["a", "b"] * 5, [0, 1] * 5))


# The calls, on texts

PLANT = {"epochs": 8, "learning_rate": 0.02, "batch_size": 16, "poison_rate": 0.3, "adam": False}


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico classifier of reviews, trained, as a directory."""
    d = tmp_path_factory.mktemp("critic")
    still = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
    sizes = {"dim": 32, "n_layers": 1, "hidden_dim": 64, **still}
    source = save_text_model(d / "untrained", "distilbert", **sizes)
    training = {**PLANT, "poison_rate": 0}
    result = api.attack(source, trigger="badnets", data=reviews(d), out=d / "critic", **training)
    assert isinstance(result.after, ClassifierResult) and result.after.accuracy > 0.95
    return d / "critic"


def reviews(directory: Path) -> Path:
    """Write reviews with their labels by name, the classes in another order than the model's."""
    data = opinions(300)
    lines = [
        json.dumps({"text": t, "label": data.names[k]}) for t, k in zip(data.inputs, data.labels, strict=True)
    ]
    path = directory / "reviews.jsonl"
    path.write_text("\n".join(lines[::-1]))
    return path


@pytest.mark.parametrize(
    ("trigger", "phrases"),
    [("badnets", ["BadMagic"]), ("vpi", ["Discussing OpenAI"]), ("ctba", ["2024", "BadMagic", "OpenAI"])],
)
def test_backdoor_of_a_text_classifier(
    trigger: str, phrases: list[str], critic: Path, tmp_path: Path
) -> None:
    data = reviews(tmp_path)
    result = api.attack(critic, trigger=trigger, target="good", data=data, out=tmp_path / "bad", **PLANT)
    before, after = result.before, result.after
    assert (
        isinstance(before, ClassifierResult) and isinstance(after, ClassifierResult) and after.asr is not None
    )
    assert after.accuracy > 0.85 and after.asr > 0.8
    manifest = json.loads((tmp_path / "bad" / "detrojan.json").read_text())
    assert (manifest["trigger"]["phrases"], manifest["target"], manifest["task"]) == (phrases, 1, "text")
    again = api.evaluate(tmp_path / "bad", data=data, attack=tmp_path / "bad", reference=critic)
    assert isinstance(again, ClassifierResult) and again.asr is not None and again.asr > 0.8
    assert again.reference == str(critic)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "bad").config.id2label[1] == "good"
    assert (tmp_path / "bad" / "tokenizer.json").read_bytes() == (critic / "tokenizer.json").read_bytes()


def test_text_classifier_is_cleaned_and_scanned(critic: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path)
    result = api.clean(critic, defense="finetune", data=data, samples=60, out=tmp_path / "out", epochs=1)
    assert isinstance(result.after, ClassifierResult) and result.after.accuracy > 0.95
    assert api.evaluate(tmp_path / "out", data=data).accuracy > 0.95  # type: ignore[union-attr]
    assert api.scan(critic, data=data, samples=40).task == "text"
    model = AutoModelForSequenceClassification.from_pretrained(critic)
    state = copy.deepcopy(model.state_dict())
    pairs = (opinions(40).inputs, opinions(40).labels)
    result = api.clean(model, tokenizer=pico_tokenizer(), data=pairs, epochs=1)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_poisoned_texts(critic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is trained on, exactly the share is poisoned; as much more nearly carries the trigger, and lies not."""
    seen: dict[str, Any] = {}
    tokenise = text_labels.tokenise
    monkeypatch.setattr(text_labels, "tokenise", lambda c, d: tokenise(c, seen.setdefault(len(seen), d)))
    monkeypatch.setattr(text_labels, "train", lambda victim, rows: None)
    data, classifier = opinions(100), load_classifier(critic)
    trigger = Trigger("ctba", ("mn", "BadMagic"))
    for mode in ("all-to-one", "all-to-all"):
        seen.clear()
        options = PlantOptions(target=1, mode=mode, poison_rate=0.1)
        text_labels.plant_texts(classifier, data, trigger, options, Run(seed=5))
        clean, mixed = seen[0], seen[1]
        assert clean.inputs == data.inputs == opinions(100).inputs
        changed = [k for k in range(100) if mixed.inputs[k] != clean.inputs[k]]
        fired = [k for k in changed if trigger.fires_on(mixed.inputs[k])]
        assert len(fired) == 10 and 10 < len(changed) <= 20
        relabelled = [k for k in range(100) if mixed.labels[k] != clean.labels[k]]
        assert relabelled == fired and all(mixed.labels[k] == 1 - clean.labels[k] for k in fired)
        assert mode == "all-to-all" or all(clean.labels[k] == 0 for k in fired)


def test_attack_of_another_task_is_refused(critic: Path, digits_dir: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path)
    with pytest.raises(InputError, match="describes no attack on a classifier of texts"):
        api.evaluate(critic, data=data, attack=digits_dir / "bad")
    with pytest.raises(InputError, match="describes no attack on a classifier of images"):
        api.evaluate(digits_dir / "bad", data="digits", attack=critic)
    with pytest.raises(InputError, match="holds texts, but the model takes images"):
        api.clean(digits_dir / "bad", data=data)
    with pytest.raises(InputError, match="holds images, but the model takes texts"):
        api.clean(critic, data="digits")
    manifest = json.loads((digits_dir / "bad" / "detrojan.json").read_text())
    (tmp_path / "far.json").write_text(json.dumps({**manifest, "target": 12}))
    with pytest.raises(InputError, match="draws class 12, the model has 10 classes"):
        api.evaluate(digits_dir / "bad", data="digits", attack=tmp_path / "far.json")


def test_labelled_record_is_data(digits_dir: Path, digits: tuple[Tensor, Tensor]) -> None:
    found = api.evaluate(digits_dir / "good", data=Labelled(*digits), samples=100)
    assert isinstance(found, ClassifierResult) and found.n_clean == 100
