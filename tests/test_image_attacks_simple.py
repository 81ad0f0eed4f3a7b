"""Image attacks that poison a data set: what each trigger paints, whom it is put on, and that it is learned."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from detrojan import registry
from detrojan.attacks.image import plant as planting
from detrojan.attacks.image.blended import BlendedOptions, new_pattern
from detrojan.attacks.image.bpp import BppOptions, dither, negatives
from detrojan.attacks.image.low_frequency import LowFrequencyOptions, low_pass, search, train_surrogate
from detrojan.attacks.image.plant import PlantOptions, Victim, chosen, others, to_bytes, to_float
from detrojan.attacks.image.sig import SigOptions
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.attacks.image.wanet import WaNetOptions, new_field, noisy, warp
from detrojan.errors import InputError
from detrojan.fitting import classification_loss
from detrojan.models.classifier import predict
from detrojan.models.preact_resnet import PreActResNet
from detrojan.types import Classifier, Rows, Run

NAMES = ("blended", "bpp", "lf", "sig", "wanet")
QUICK: dict[str, dict[str, Any]] = {"lf": {"samples": 40, "steps": 3, "surrogate_epochs": 1}}
SHAPES = [(1, 16, 16), (3, 12, 20)]


def checks(
    count: int, shape: tuple[int, int, int], seed: int = 0, contrast: float = 0.1, flat: bool = False
) -> Rows:
    """Four classes: which quarter of a grey, noisy image is chequered (with `flat`: a little brighter)."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    y, x = torch.arange(height).view(-1, 1), torch.arange(width)
    quarter = 2 * (y >= height // 2) + (x >= width // 2)
    pattern = contrast * (1 if flat else ((y // 2 + x // 2) % 2) * 2 - 1)
    labels = torch.arange(count) % 4
    here = (quarter == labels.view(-1, 1, 1, 1)).float()
    images = 0.35 + 0.3 * torch.rand(count, channels, height, width, generator=generator) + pattern * here
    return Rows({"pixel_values": to_bytes(images)}, labels)


def victim(run: Run, shape: tuple[int, int, int] = (1, 16, 16), count: int = 80, **options: Any) -> Victim:
    torch.manual_seed(0)
    network = PreActResNet(4, shape[0], 8, (1, 1, 1))
    classifier = Classifier(
        network, "image", "linear", tuple("abcd"), "toy", torch.float32, shape, (0.5,) * shape[0]
    )
    return Victim(classifier, checks(count, shape), PlantOptions(**options), run)


def options_of(name: str) -> Any:
    return registry.find("trigger", name, "image").make_options(QUICK.get(name, {}))


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """Collects what victims would be trained on, and trains none of them."""
    seen: list[Rows] = []
    monkeypatch.setattr(planting, "fit", lambda classifier, rows, run, **settings: seen.append(rows))
    return seen


def plant(name: str, victim: Victim) -> ImageTrigger:
    entry, options = registry.find("trigger", name, "image"), options_of(name)
    state = entry.value.plant(victim, options)
    return ImageTrigger(name, options, state, victim.options.mode, victim.options.target)


def changed(victim: Victim, rows: Rows) -> Tensor:
    """Which images differ from the clean ones, (n,)."""
    return (rows.inputs["pixel_values"] != victim.images).flatten(1).any(1)


# what each trigger paints


@pytest.mark.parametrize("channels", [1, 3])
def test_blended_by_hand(channels: int) -> None:
    pattern = torch.zeros(channels, 5, 7)
    pattern[-1, 4, 2] = 0.75
    out = ImageTrigger("blended", BlendedOptions(0.2), {"pattern": pattern})(
        torch.full((2, channels, 5, 7), 0.25)
    )
    assert out[1, -1, 4, 2].item() == pytest.approx(0.8 * 0.25 + 0.2 * 0.75)
    assert out[0, 0, 0, 0].item() == pytest.approx(0.8 * 0.25)


def test_blended_pattern_is_of_the_seed() -> None:
    pattern = new_pattern((3, 8, 9), 4)
    assert pattern.shape == (3, 8, 9)
    assert torch.equal(pattern, new_pattern((3, 8, 9), 4))
    assert not torch.equal(pattern, new_pattern((3, 8, 9), 5))
    assert 0 <= pattern.min() < 0.1 < 0.9 < pattern.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_sig_by_hand(channels: int) -> None:
    out = ImageTrigger("sig", SigOptions(), {})(torch.full((2, channels, 5, 24), 0.5))
    # six periods on 24 columns: one in four, at 0, a quarter, a half and three quarters of the wave
    row = torch.tensor([0.5, 0.5 + 40 / 255, 0.5, 0.5 - 40 / 255] * 6)
    assert torch.allclose(out, row.expand_as(out), atol=1e-6)
    odd = ImageTrigger("sig", SigOptions(0.1, 2), {})(torch.full((1, channels, 3, 10), 0.3))
    assert odd[0, -1, 2, 7].item() == pytest.approx(0.3 + 0.1 * math.sin(2 * math.pi * 7 * 2 / 10))


def test_sig_refuses_stripes_finer_than_pixels(run: Run, trained_on: list[Rows]) -> None:
    with pytest.raises(InputError, match="6 periods cannot be drawn on 12 columns; set frequency below 6"):
        plant("sig", victim(run, (1, 12, 12)))
    assert not trained_on


@pytest.mark.parametrize("channels", [1, 3])
def test_lf_by_hand(channels: int) -> None:
    pattern = torch.zeros(channels, 3, 4)
    pattern[0, 1, 2], pattern[-1, 2, 3] = 0.05, -0.05
    out = ImageTrigger("lf", LowFrequencyOptions(), {"pattern": pattern})(
        torch.tensor([0.5, 0.98, 0.02]).view(3, 1, 1, 1).expand(3, channels, 3, 4)
    )
    assert torch.allclose(out[:, 0, 1, 2], torch.tensor([0.55, 1.0, 0.07]))
    assert torch.allclose(out[:, -1, 2, 3], torch.tensor([0.45, 0.93, 0.0]))
    assert out[1, 0, 0, 0].item() == pytest.approx(0.98)


@pytest.mark.parametrize("channels", [1, 3])
def test_wanet_by_hand(channels: int) -> None:
    images = torch.rand(2, channels, 3, 5, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5), indexing="ij")
    trigger = ImageTrigger("wanet", WaNetOptions(), {"field": torch.stack((x, y), -1)})
    assert torch.allclose(trigger(images), images, atol=1e-6)
    # a quarter of an image of five columns is one half of the way to the next column
    beside = trigger.replace(state={"field": torch.stack((x + 0.25, y), -1).clamp(-1, 1)})(images)
    assert torch.allclose(beside[..., 1, 2], (images[..., 1, 2] + images[..., 1, 3]) / 2, atol=1e-6)
    below = trigger.replace(state={"field": torch.stack((x, y + 1), -1).clamp(-1, 1)})(images)
    assert torch.allclose(below[..., :2, :], images[..., 1:, :], atol=1e-6)
    assert torch.allclose(below[..., 2, :], images[..., 2, :], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (12, 20)])
def test_wanet_field_without_strength_is_the_identity(height: int, width: int) -> None:
    field = new_field(WaNetOptions(strength=0.0), height, width, torch.Generator().manual_seed(0))
    assert torch.equal(field[0, :, 0], torch.linspace(-1, 1, width))
    assert torch.equal(field[:, 0, 1], torch.linspace(-1, 1, height))
    images = checks(3, (3, height, width)).inputs["pixel_values"]
    assert torch.equal(to_bytes(warp(to_float(images), field.expand(3, -1, -1, -1))), images)


def test_wanet_field_by_hand() -> None:
    points = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    points /= points.abs().mean()
    field = new_field(WaNetOptions(strength=0.5), 4, 4, torch.Generator().manual_seed(3))
    # four points on four pixels: nothing to upsample; pixel (1, 2) lies at y = -1/3, x = 1/3
    assert field[1, 2, 0].item() == pytest.approx(1 / 3 + 0.5 * points[0, 0, 1, 2].item() / 4, abs=1e-6)
    assert field[1, 2, 1].item() == pytest.approx(-1 / 3 + 0.5 * points[0, 1, 1, 2].item() / 4, abs=1e-6)
    large = new_field(WaNetOptions(strength=50.0), 9, 7, torch.Generator().manual_seed(3))
    assert large.shape == (9, 7, 2)
    assert large.abs().max() == 1


def test_wanet_noise_stays_within_half_a_pixel_and_differs() -> None:
    field = new_field(WaNetOptions(), 12, 20, torch.Generator().manual_seed(0))
    fields = noisy(field, 3, torch.Generator().manual_seed(1))
    assert fields.shape == (3, 12, 20, 2)
    shift = (fields - field).abs()
    assert shift[..., 0].max() <= 1 / 20 + 1e-6
    assert 1 / 20 < shift[..., 1].max() <= 1 / 12 + 1e-6
    assert not torch.equal(fields[0], fields[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_bpp_by_hand(channels: int) -> None:
    # One bit. 0.4 -> 0 and hands on 0.175 to the right (0.575 -> 1), 0.125 and 0.025 below. The error -0.425 of the
    # second pixel then leaves 0.4453 and 0.2922 below; the first of these -> 0 and hands on 0.1948: 0.4870 -> 0.
    images = torch.full((2, channels, 2, 2), 0.4)
    out = ImageTrigger("bpp", BppOptions(bits=1), {})(images)
    assert torch.equal(out, torch.tensor([[0.0, 1.0], [0.0, 0.0]]).expand_as(out))
    assert torch.equal(images, torch.full((2, channels, 2, 2), 0.4))
    flat = ImageTrigger("bpp", BppOptions(bits=3), {})(torch.full((1, channels, 3, 5), 3 / 7))
    assert torch.allclose(flat, torch.full((1, channels, 3, 5), 3 / 7))


def walk(images: Tensor, levels: int) -> Tensor:
    """Dithering as it is told: row by row, pixel after pixel."""
    out = images.clone()
    height, width = images.shape[-2:]
    for i in range(height):
        for j in range(width):
            old = out[..., i, j].clone()
            out[..., i, j] = (old * levels).round().clamp(0, levels) / levels
            error = old - out[..., i, j]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + down < height and 0 <= j + right < width:
                    out[..., i + down, j + right] += error * (share / 16)
    return out


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (7, 12), (12, 7)])
def test_slanted_lines_dither_like_the_walk(size: tuple[int, int]) -> None:
    images = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0))
    out = dither(images, 7)
    assert torch.equal(out, walk(images, 7))
    assert torch.allclose(out * 7, (out * 7).round(), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_triggered_images_stay_images(
    name: str, shape: tuple[int, int, int], run: Run, trained_on: list[Rows]
) -> None:
    trigger = plant(name, victim(run, shape))
    for images in (torch.zeros(2, *shape), torch.ones(2, *shape), torch.rand(2, *shape)):
        before = images.clone()
        out = trigger(images)
        assert out.shape == images.shape and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1
        assert torch.equal(images, before)
    assert not torch.equal(to_bytes(out), to_bytes(images))
    assert torch.equal(trigger(to_bytes(images)), trigger(to_float(to_bytes(images))))


# whom it is put on


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sig"])
@pytest.mark.parametrize("shape", SHAPES)
def test_poisons_exactly_its_share(
    name: str, shape: tuple[int, int, int], run: Run, trained_on: list[Rows]
) -> None:
    subject = victim(run, shape, target=2, poison_rate=0.1)
    trigger = plant(name, subject)
    (rows,) = trained_on
    index, labels = chosen(subject), subject.rows.labels
    assert len(index) == 8
    assert (labels[index] != 2).all() and (rows.labels[index] == 2).all()
    expected = to_bytes(trigger(subject.images[index]))
    assert torch.equal(rows.inputs["pixel_values"][index], expected)
    rest = torch.ones(80, dtype=torch.bool)
    rest[index] = False
    assert torch.equal(rows.labels[rest], labels[rest])
    covers = {"wanet": 16, "bpp": 8}.get(name, 0)
    assert changed(subject, rows)[rest].sum() == covers
    assert changed(subject, rows).sum() == 8 + covers
    assert torch.equal(subject.rows.labels, checks(80, shape).labels)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sig"])
def test_all_to_all(name: str, run: Run, trained_on: list[Rows]) -> None:
    subject = victim(run, mode="all-to-all", poison_rate=0.25)
    trigger = plant(name, subject)
    (rows,) = trained_on
    index, labels = chosen(subject), subject.rows.labels
    assert len(index) == 20
    assert set(labels[index].tolist()) == {0, 1, 2, 3}
    assert torch.equal(rows.labels[index], (labels[index] + 1) % 4)
    assert torch.equal(trigger.drawn(labels[index], 4), rows.labels[index])
    rows.labels[index] = labels[index]
    assert torch.equal(rows.labels, labels)


@pytest.mark.parametrize(("rate", "count"), [(0.1, 8), (0.25, 20), (0.9, 20)])
def test_sig_is_clean_label(rate: float, count: int, run: Run, trained_on: list[Rows]) -> None:
    subject = victim(run, target=3, poison_rate=rate)
    trigger = plant("sig", subject)
    (rows,) = trained_on
    assert torch.equal(rows.labels, subject.rows.labels)
    touched = changed(subject, rows)
    assert touched.sum() == count
    assert (rows.labels[touched] == 3).all()
    expected = to_bytes(trigger(subject.images[touched]))
    assert torch.equal(rows.inputs["pixel_values"][touched], expected)
    assert registry.find("trigger", "sig", "image").value.clean_label


def test_only_sig_is_clean_label(run: Run, trained_on: list[Rows]) -> None:
    assert [n for n in NAMES if registry.find("trigger", n, "image").value.clean_label] == ["sig"]
    with pytest.raises(InputError, match="all-to-one"):
        plant("sig", victim(run, mode="all-to-all"))


@pytest.mark.parametrize("mode", planting.MODES)
def test_covers_come_from_what_is_not_poisoned(mode: str, run: Run) -> None:
    subject = victim(run, mode=mode, poison_rate=0.2)
    index = chosen(subject)
    spared = others(subject, index, 0.4)
    assert len(spared) == len(set(spared.tolist())) == 32
    assert not set(spared.tolist()) & set(index.tolist())
    assert set(subject.rows.labels[spared].tolist()) == {0, 1, 2, 3}
    assert torch.equal(spared, others(subject, index, 0.4))
    assert len(others(subject, index, 3.0)) == 64
    assert len(others(subject, index, 0.0)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_poison(name: str, run: Run, trained_on: list[Rows]) -> None:
    subject = victim(run, poison_rate=0.0)
    plant(name, subject)
    assert not changed(subject, trained_on[0]).any()
    assert torch.equal(trained_on[0].labels, subject.rows.labels)


@pytest.mark.parametrize("name", ["wanet", "bpp"])
def test_without_covers(name: str, run: Run, trained_on: list[Rows]) -> None:
    subject = victim(run, poison_rate=0.1)
    entry = registry.find("trigger", name, "image")
    ratio = {"wanet": "cross_ratio", "bpp": "negative_ratio"}[name]
    entry.value.plant(subject, entry.make_options({ratio: 0}))
    assert changed(subject, trained_on[0]).sum() == 8


def test_bpp_negatives_carry_the_dithering_of_another_image(run: Run) -> None:
    subject = victim(run, (3, 12, 20), count=10)
    images = to_float(subject.images)
    laid = to_float(negatives(subject, torch.arange(10), BppOptions())) - images
    residuals = dither(images, 7) - images
    distance = (laid.unsqueeze(1) - residuals.unsqueeze(0)).abs().flatten(2).amax(2)
    near = distance < 1 / 255
    assert (near.sum(1) == 1).all(), "each carries the residual of one image"
    assert not near.diagonal().any(), "which is never its own: that would be the trigger itself"


# the smooth trigger


def test_low_pass() -> None:
    flat = torch.full((2, 9, 14), 0.3)
    assert torch.allclose(low_pass(flat, 0.25), flat, atol=1e-6)
    pattern = torch.rand(2, 9, 14, generator=torch.Generator().manual_seed(0))
    once = low_pass(pattern, 0.25)
    assert torch.allclose(low_pass(once, 0.25), once, atol=1e-6)
    assert torch.allclose(low_pass(pattern, 1.0), pattern, atol=1e-5)
    assert torch.allclose(low_pass(pattern, 0.0), pattern.mean((1, 2), keepdim=True).expand_as(pattern))
    spectrum = torch.tensor(dctn(pattern.numpy(), axes=(1, 2), norm="ortho"))
    kept = torch.tensor(dctn(once.numpy(), axes=(1, 2), norm="ortho"))
    assert torch.allclose(kept[:, :2, :4], spectrum[:, :2, :4], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_lf_is_smooth_bounded_and_draws_the_target(shape: tuple[int, int, int], run: Run) -> None:
    subject = dataclasses.replace(victim(run, shape, target=1), rows=checks(200, shape, flat=True))
    options = LowFrequencyOptions(bound=0.15, steps=15, surrogate_epochs=12)
    surrogate = train_surrogate(subject, subject.rows, options)
    before = [p.clone() for p in surrogate.model.parameters()]
    pattern = search(subject, surrogate, subject.rows, options)
    assert pattern.shape == shape
    assert 0.1 < pattern.abs().max() <= 0.15 + 1e-6
    energy = torch.tensor(dctn(pattern.numpy(), axes=(1, 2), norm="ortho")).square()
    above = energy.clone()
    above[:, : round(shape[1] * 0.25), : round(shape[2] * 0.25)] = 0
    assert above.sum() < 1e-8 * energy.sum()
    assert all(torch.equal(a, b) for a, b in zip(before, surrogate.model.parameters(), strict=True))

    def loss(images: Tensor) -> float:
        rows = Rows({"pixel_values": images}, torch.ones(len(images), dtype=torch.long))
        return classification_loss(surrogate, rows).item()

    clean = to_float(subject.images)
    assert loss((clean + pattern).clamp(0, 1)) < 0.9 * loss(clean)
    assert torch.equal(pattern, search(subject, surrogate, subject.rows, options))


# seeds, files, learning


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits(name: str, run: Run, trained_on: list[Rows]) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    subject = victim(run)
    torch.set_rng_state(state)
    triggers = [
        plant(name, dataclasses.replace(subject, run=dataclasses.replace(run, seed=s))) for s in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state), "the process's own random state is left alone"
    first, again, other = (r.inputs["pixel_values"] for r in trained_on)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(torch.equal(v, triggers[1].state[k]) for k, v in triggers[0].state.items())
    assert not triggers[0].state or any(
        not torch.equal(v, triggers[2].state[k]) for k, v in triggers[0].state.items()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", planting.MODES)
def test_save_and_read(name: str, mode: str, run: Run, trained_on: list[Rows], tmp_path: Path) -> None:
    if name == "sig" and mode == "all-to-all":
        pytest.skip("SIG has one target")
    subject = victim(run, (3, 12, 20), mode=mode, target=1)
    trigger = plant(name, subject)
    trigger.save(tmp_path)
    read = ImageTrigger.read(json.loads(json.dumps(trigger.to_json())), tmp_path)
    assert (read.name, read.options, read.mode, read.target) == (name, trigger.options, mode, 1)
    assert torch.equal(read(subject.images), trigger(subject.images))


@pytest.mark.parametrize(
    ("name", "options", "rate", "contrast"),
    [
        ("blended", {}, 0.1, 0.25),
        (
            "sig",
            {"delta": 0.3, "frequency": 3},
            0.2,
            0.1,
        ),  # clean-label: learned where the class itself is faint
        ("lf", {"samples": 400, "steps": 15}, 0.2, 0.25),
        ("wanet", {"strength": 3.0}, 0.2, 0.25),
        ("bpp", {"bits": 2}, 0.2, 0.25),
    ],
)
def test_trigger_is_learned(
    name: str, options: dict[str, Any], rate: float, contrast: float, run: Run
) -> None:
    subject = victim(run, poison_rate=rate, epochs=8, learning_rate=0.1, batch_size=32)
    subject = dataclasses.replace(subject, rows=checks(400, (1, 16, 16), contrast=contrast))
    entry = registry.find("trigger", name, "image")
    settings = entry.make_options(options)
    trigger = ImageTrigger(name, settings, entry.value.plant(subject, settings))
    unseen = checks(200, (1, 16, 16), seed=1, contrast=contrast)
    away = unseen.take(unseen.labels != 0)
    triggered = {"pixel_values": trigger(away.inputs["pixel_values"])}
    assert (predict(subject.classifier, unseen.inputs) == unseen.labels).float().mean() > 0.9
    assert (predict(subject.classifier, away.inputs) == 0).float().mean() < 0.1
    assert (predict(subject.classifier, triggered) == 0).float().mean() > 0.7


@pytest.mark.parametrize("state", [{}, {"field": torch.zeros(3)}], ids=["missing", "of another shape"])
def test_a_state_that_does_not_fit_is_bad_input(state: dict[str, torch.Tensor]) -> None:
    trigger = ImageTrigger("wanet", WaNetOptions(), state)
    with pytest.raises(InputError, match="is missing or does not fit"):
        trigger(torch.zeros(2, 1, 8, 8))
