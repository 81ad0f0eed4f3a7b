"""Image attacks that learn: what their triggers paint, what bounds they keep, whom they poison, and that they work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan import registry
from detrojan.attacks.image import blind, input_aware, label_consistent, lira, networks, ssba, trojannn
from detrojan.attacks.image import plant as planting
from detrojan.attacks.image.plant import PlantOptions, Victim, chosen, relabel, to_bytes, to_float
from detrojan.attacks.image.surrogate import surrogate
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.errors import InputError, NonFiniteLossError
from detrojan.models.classifier import logits, predict
from detrojan.models.zoo import new_classifier
from detrojan.types import Classifier, Rows, Run

QUICK: dict[str, dict[str, Any]] = {
    "blind": {},
    "input-aware": {"mask_steps": 2, "width": 2},
    "lc": {"surrogate_epochs": 1, "noise_steps": 2},
    "lira": {"joint_epochs": 1, "width": 2},
    "ssba": {"steps": 2, "bits": 4, "width": 2},
    "trojannn": {"clean_epochs": 1, "patch_steps": 2},
}
ENOUGH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "blind": ({}, {"epochs": 3}),
    "input-aware": ({"mask_steps": 60, "density": 0.2}, {"epochs": 8}),
    "lira": ({"joint_epochs": 3, "epsilon": 0.1}, {"epochs": 3}),
    "ssba": ({"steps": 150, "bits": 4, "image_weight": 50.0}, {"epochs": 5}),
    "trojannn": ({"clean_epochs": 1, "patch_steps": 20}, {"epochs": 3}),
}
"""Options of the attack and of the plant with which each is learned from few small images."""
NAMES = tuple(QUICK)
SHAPES = [(1, 8, 8), (3, 9, 14)]


def bright_quarters(
    count: int, shape: tuple[int, int, int] = (1, 16, 16), seed: int = 0, contrast: float = 0.3
) -> Rows:
    """Four classes: which quarter of a noisy image is bright."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    down, across = torch.arange(height).view(-1, 1) * 2 // height, torch.arange(width) * 2 // width
    labels = torch.arange(count) % 4
    bright = (2 * down + across == labels.view(-1, 1, 1, 1)).float()
    noise = 0.3 * torch.rand(count, channels, height, width, generator=generator)
    return Rows({"pixel_values": to_bytes(0.2 + contrast * bright + noise)}, labels)


def victim(
    shape: tuple[int, int, int] = (1, 16, 16), count: int = 40, seed: int = 0, **options: Any
) -> Victim:
    names, channels = tuple("abcd"), shape[0]
    model = new_classifier("preact-resnet8", names, (channels, shape[1], shape[1]), width=8)
    middle = (0.5,) * channels
    made = Classifier(model, "image", "module.linear", names, "toy", torch.float32, shape, middle, middle)
    settings = PlantOptions(**{"epochs": 1, "batch_size": 16, "learning_rate": 0.05, **options})
    return Victim(made, bright_quarters(count, shape), settings, Run(seed=seed))


def plant(name: str, subject: Victim, **options: Any) -> ImageTrigger:
    entry = registry.find("trigger", name, "image")
    made = entry.make_options({**QUICK[name], **options})
    return ImageTrigger(
        name, made, entry.value.plant(subject, made), subject.options.mode, subject.options.target
    )


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """Collects what victims would be trained on, and trains none of them."""
    seen: list[Rows] = []
    monkeypatch.setattr(planting, "fit", lambda classifier, rows, run, **settings: seen.append(rows))
    return seen


# what the triggers paint


@pytest.mark.parametrize("channels", [1, 3])
def test_lc_by_hand(channels: int) -> None:
    options = label_consistent.LabelConsistentOptions(size=3, amplitude=0.25)
    grey = torch.full((2, channels, 8, 11), 0.5)
    out = label_consistent.apply(grey, options, {})
    board = torch.tensor([[0.75, 0.25, 0.75], [0.25, 0.75, 0.25], [0.75, 0.25, 0.75]])
    for corner in (out[..., :3, :3], out[..., :3, -3:], out[..., -3:, :3], out[..., -3:, -3:]):
        assert torch.equal(corner, board.expand_as(corner))
    assert (out[..., 3:5, :] == 0.5).all() and (out[..., 3:8] == 0.5).all()
    assert torch.equal(out, out.flip(-1)) and torch.equal(out, out.flip(-2))
    full = label_consistent.apply(grey, dataclasses.replace(options, amplitude=1.0), {})
    assert full[0, 0, 0, 0] == 1 and full[0, 0, 0, 1] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_blind_by_hand(channels: int) -> None:
    out = blind.apply(torch.full((2, channels, 9, 8), 0.25), blind.BlindOptions(size=3, value=0.75), {})
    cross = torch.tensor([[0.75, 0.25, 0.75], [0.25, 0.75, 0.25], [0.75, 0.25, 0.75]])
    assert torch.equal(out[..., 1:4, 1:4], cross.expand(2, channels, 3, 3))
    assert (out == 0.75).sum() == 2 * channels * 5
    large = blind.apply(torch.zeros(1, channels, 9, 8), blind.BlindOptions(size=50), {})
    assert large.sum() == channels * 13, "as large as the image has room for: seven pixels"


@pytest.mark.parametrize("channels", [1, 3])
def test_trojannn_by_hand(channels: int) -> None:
    patch = torch.rand(channels, 2, 3, generator=torch.Generator().manual_seed(0))
    out = trojannn.apply(torch.zeros(2, channels, 8, 9), trojannn.TrojanNNOptions(), {"patch": patch})
    assert torch.equal(out[1, :, 6:, 6:], patch)
    assert out[..., :6, :].sum() == 0 and out[..., :6].sum() == 0


def test_lira_noise_by_hand() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    out = lira.disturb(nn.Identity(), images, 0.1)
    assert torch.allclose(out.flatten(), torch.tensor([0.0, 0.5 + 0.1 * 0.46211716, 1.0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_hold_however_loud_the_networks(shape: tuple[int, int, int]) -> None:
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    loud = networks.UNet(shape[0], shape[0], 4)
    encoder = ssba.Encoder(shape[0], 6, 4, bound=0.07)
    for network in (loud, encoder):
        for parameter in network.parameters():
            parameter.data *= 5
    for bound, out in (
        (0.03, lira.disturb(loud, images, 0.03)),
        (0.07, ssba.hide(encoder, images, torch.ones(5, 6))),
    ):
        assert 0.9 * bound < (out - images).abs().max() <= bound + 1e-6
        assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_triggered_images_stay_images(name: str, shape: tuple[int, int, int], trained_on: list[Rows]) -> None:
    trigger = plant(name, victim(shape))
    for images in (torch.zeros(2, *shape), torch.ones(2, *shape), torch.rand(2, *shape)):
        before = images.clone()
        out = trigger(images)
        assert out.shape == images.shape and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1
        assert torch.equal(images, before)
    assert not torch.equal(to_bytes(out), to_bytes(images))
    assert not out.requires_grad
    assert trigger(images[:0]).shape == (0, *shape)


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (15, 11)])
def test_unet_keeps_the_size_and_the_samples_apart(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network, images = networks.UNet(3, 2, 4), torch.rand(4, 3, *size)
    out = network(images)
    assert out.shape == (4, 2, *size)
    assert torch.allclose(network(images[1:2])[0], out[1], atol=1e-6)
    assert torch.allclose(networks.run_network(network, images, size=3), out, atol=1e-6)


# label-consistent


def test_noise_keeps_its_bound_and_leads_away_from_the_label() -> None:
    subject = victim(count=120)
    teacher = surrogate(subject, epochs=4)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    images, labels = to_float(subject.images), subject.rows.labels

    def loss(x: Tensor) -> float:
        with torch.no_grad():
            return cross_entropy(logits(teacher, {"pixel_values": x}), labels).item()

    torch.manual_seed(0)
    noisy = label_consistent.away(teacher, images, labels, epsilon=0.1, steps=4, rate=0.5)
    assert (noisy - images).abs().max() <= 0.1 + 1e-6
    assert noisy.min() >= 0 and noisy.max() <= 1
    assert loss(noisy) > 1.5 * loss(images)
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
    assert all(p.grad is None for p in subject.classifier.model.parameters())


def test_surrogate_learns_and_leaves_the_victim_alone() -> None:
    subject = victim((3, 9, 14), count=120)
    before = {k: v.clone() for k, v in subject.classifier.model.state_dict().items()}
    first, again = surrogate(subject, 4), surrogate(subject, 4)
    held = bright_quarters(80, (3, 9, 14), seed=1)
    assert (predict(first, held.inputs) == held.labels).float().mean() > 0.9
    assert torch.equal(logits(first, held.inputs), logits(again, held.inputs))
    assert all(torch.equal(v, before[k]) for k, v in subject.classifier.model.state_dict().items())


@pytest.mark.parametrize(("rate", "count"), [(0.1, 4), (0.2, 8), (0.9, 10)])
def test_lc_is_clean_label(rate: float, count: int, trained_on: list[Rows]) -> None:
    subject = victim((3, 9, 14), target=2, poison_rate=rate)
    trigger = plant("lc", subject, epsilon=0.05, amplitude=0.5)
    (rows,) = trained_on
    assert torch.equal(rows.labels, subject.rows.labels)
    moved = rows.inputs["pixel_values"].int() - subject.images.int()
    touched = moved.flatten(1).any(1)
    assert touched.sum() == count and (rows.labels[touched] == 2).all()
    assert torch.equal(touched.nonzero().flatten(), chosen(subject, clean_label=True))
    middle = moved[touched][..., 3:6, :]
    assert 0 < middle.abs().max() <= round(0.05 * 255)
    assert moved[touched][..., 0, 0].min() > 0, "the corner is lightened"
    at_test = trigger(subject.images) - to_float(subject.images)
    assert at_test[..., 3:6, :].abs().max() == 0, "no noise in the trigger"
    assert registry.find("trigger", "lc", "image").value.clean_label


def test_lc_has_one_target(trained_on: list[Rows]) -> None:
    with pytest.raises(InputError, match="all-to-one"):
        plant("lc", victim(mode="all-to-all"))


# blind


@pytest.mark.parametrize(
    ("first", "second", "weight"),
    [
        ([[1.0, 0.0]], [[0.0, 2.0]], 0.8),  # (-1, 2).(0, 2) / |(1, -2)|^2 = 4 / 5
        ([[1.0], [0.0]], [[0.0], [2.0]], 0.8),  # the same over two parameters
        ([[1.0]], [[-3.0]], 0.75),  # opposite: 0.75 * 1 - 0.25 * 3 = 0
        ([[1.0, 0.0]], [[3.0, 0.0]], 1.0),  # one way: the shorter alone
        ([[3.0, 0.0]], [[1.0, 1.0]], 0.0),  # (-2, 1).(1, 1) < 0
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.5),
        ([[0.0]], [[0.0]], 0.5),
    ],
)
def test_min_norm_weight(first: list[list[float]], second: list[list[float]], weight: float) -> None:
    found = blind.min_norm_weight([torch.tensor(g) for g in first], [torch.tensor(g) for g in second])
    assert found.item() == pytest.approx(weight)


def test_mixture_has_the_value_and_the_gradient_of_the_weighted_losses() -> None:
    p, q = torch.tensor([2.0, 1.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    # both losses are 2, so that dividing the gradients (1, 0) and (0, 2) by them changes no weight: 0.8
    value = blind.mixed((p[0], 2 * p[1]), [p, q])
    assert value.item() == pytest.approx(0.8 * 2 + 0.2 * 2)
    value.backward()
    assert torch.allclose(p.grad, torch.tensor([0.8, 0.4])) and q.grad == 0  # type: ignore[arg-type]
    # a clean loss of 1 leaves (1, 0) against (0, 2) / 2: halves
    r = torch.tensor([1.0, 1.0], requires_grad=True)
    assert blind.mixed((r[0], 2 * r[1]), [r]).item() == pytest.approx(0.5 * 1 + 0.5 * 2)


# TrojanNN


def test_best_connected_by_hand() -> None:
    head = nn.Linear(4, 2)
    head.weight.data = torch.tensor([[1.0, -3.0, 0.0, 2.0], [-2.0, 2.0, 1.0, 2.0]])  # sums 3, 5, 1, 4
    assert trojannn.best_connected(head, 2).tolist() == [1, 3]
    assert trojannn.best_connected(head, 9).tolist() == [1, 3, 0, 2]


def test_features_are_what_the_head_reads() -> None:
    subject = victim()
    subject.classifier.model.eval()
    with torch.no_grad():
        found = trojannn.features(subject.classifier, subject.images)
        head = subject.classifier.model.get_submodule("module.linear")
        assert torch.allclose(head(found), logits(subject.classifier, {"pixel_values": subject.images}))
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("shape", SHAPES)
def test_patch_excites_its_neurons(shape: tuple[int, int, int]) -> None:
    subject = victim(shape)
    options = trojannn.TrojanNNOptions(patch_steps=25, neurons=1, size=4)
    model = subject.classifier.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    patch = trojannn.excite(subject, options)
    assert patch.shape == (shape[0], 4, 4) and patch.min() >= 0 and patch.max() <= 1
    (neuron,) = trojannn.best_connected(model.get_submodule("module.linear"), 1)  # type: ignore[arg-type]
    random = torch.rand(shape[0], 4, 4, generator=torch.Generator().manual_seed(0))
    images = to_float(subject.images)
    with torch.no_grad():
        value, chance = (
            trojannn.features(subject.classifier, trojannn.apply(images, options, {"patch": p}))[
                :, neuron
            ].mean()
            for p in (patch, random)
        )
    assert value > chance
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# input-aware


def test_sameness_by_hand() -> None:
    images = torch.tensor([0.0, 0.6, 0.2]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    outcome = torch.tensor([0.0, 0.3, 0.7]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert input_aware.sameness(images, outcome).item() == pytest.approx((2 + 1) / 2, rel=1e-3)
    alike = torch.full((3, 1, 2, 2), 0.5, requires_grad=True)
    loss = input_aware.sameness(images, alike)
    loss.backward()
    assert loss > 100 and torch.isfinite(alike.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "wanted"), [("all-to-one", [3, 3]), ("all-to-all", [1, 2])])
def test_mixed_batch_by_hand(mode: str, wanted: list[int]) -> None:
    images = torch.zeros(6, 1, 1, 2)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    # the triggers of image 5 and of images 0, 1, 2, 3: painted on the left pixel only
    masks = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2).expand(5, 1, 1, 2)
    patterns = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.4]).view(5, 1, 1, 1).expand(5, 1, 1, 2)
    options = PlantOptions(target=3, mode=mode)
    mixed, marked = input_aware.mix(images, labels, (masks, patterns), options, cross=2, classes=4)
    assert mixed[..., 1].sum() == 0
    assert torch.allclose(mixed[:, 0, 0, 0], torch.tensor([0.1, 0.2, 0.2, 0.3, 0.0, 0.0]))
    assert marked.tolist() == [*wanted, 2, 3, 0, 1], "a cross-trigger sample keeps its label"
    crossed, kept = input_aware.mix(images, labels, (masks, patterns), options, cross=4, classes=4)
    assert crossed[0, 0, 0, 0].item() == pytest.approx(0.9) and torch.equal(kept, labels)


def test_masks_are_sparse_unlike_and_within_bounds() -> None:
    subject = victim(count=60)
    options = input_aware.InputAwareOptions(mask_steps=80, density=0.1, width=4)
    mask = networks.new_network(subject, lambda: input_aware.Mask(1, 4))
    images = to_float(subject.images)
    with torch.no_grad():
        start = input_aware.mask_loss(mask, options, images)
    networks.learn(
        mask.parameters(),
        lambda x, _: input_aware.mask_loss(mask, options, x),
        subject,
        steps=80,
        learning_rate=1e-2,
        label="masks",
    )
    with torch.no_grad():
        masks = mask(images)
        assert input_aware.mask_loss(mask, options, images) < start / 5
    assert masks.shape == (60, 1, 16, 16) and masks.min() >= 0 and masks.max() <= 1
    assert 0.01 < masks.mean() < 0.15
    assert (masks[1:] - masks[:-1]).abs().mean() > 0.01


# SSBA


def test_decoder_reads_what_the_encoder_hides() -> None:
    subject = victim((3, 12, 12), count=60)
    options = ssba.SsbaOptions(bits=4, steps=150, image_weight=100.0)
    encoder, decoder = ssba.train_networks(subject, options)
    generator = torch.Generator().manual_seed(9)
    bits = torch.randint(2, (60, 4), generator=generator).float()
    images = to_float(subject.images)
    with torch.no_grad():
        hidden = ssba.hide(encoder, images, bits)
        read = decoder(to_float(to_bytes(hidden))) > 0
        assert (read == bits.bool()).float().mean() > 0.75
        blank = (decoder(images) > 0) == bits.bool()
    assert blank.float().mean() < 0.65, "a clean image holds no string"
    assert ((hidden - images) ** 2).mean().sqrt() < 0.08


# how the networks learn


def test_beside_moves_the_network_with_the_classifier() -> None:
    subject = victim(epochs=2)
    network = networks.new_network(subject, lambda: nn.Conv2d(1, 1, 1))
    start = {k: v.clone() for k, v in network.state_dict().items()}
    steps: list[float] = []

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        images, labels = networks.pictures(classifier, batch)
        steps.append(network.weight.item())
        return cross_entropy(logits(classifier, {"pixel_values": network(images)}), labels)

    planting.train(subject, loss=networks.beside(network, loss, subject, learning_rate=1e-2))
    assert steps[0] == start["weight"].item()
    assert len(steps) == 6 and len(set(steps)) == 6
    # Adam's first step is the learning rate, whatever the gradient; the cosine has moved once by then
    assert abs(steps[1] - steps[0]) == pytest.approx(1e-2, rel=0.1)


def test_a_loss_that_is_not_finite_is_told() -> None:
    subject = victim()
    value = torch.ones(1, requires_grad=True)
    with pytest.raises(NonFiniteLossError, match="hiding: the loss became inf at step 1"):
        networks.learn(
            [value], lambda _x, _s: (value / 0).sum(), subject, steps=3, learning_rate=0.1, label="hiding"
        )


# whom they are put on


@pytest.mark.parametrize("name", ["lira", "ssba", "trojannn"])
@pytest.mark.parametrize("mode", planting.MODES)
def test_last_stage_poisons_exactly_its_share(name: str, mode: str, trained_on: list[Rows]) -> None:
    subject = victim((3, 9, 14), target=2, poison_rate=0.2, mode=mode)
    trigger = plant(name, subject)
    rows, index, labels = trained_on[-1], chosen(subject), subject.rows.labels
    assert len(index) == 8
    assert torch.equal(rows.labels[index], relabel(labels[index], subject.options, 4))
    assert torch.equal(rows.inputs["pixel_values"][index], to_bytes(trigger(subject.images[index])))
    rest = torch.ones(40, dtype=torch.bool)
    rest[index] = False
    assert torch.equal(rows.labels[rest], labels[rest])
    assert torch.equal(rows.inputs["pixel_values"][rest], subject.images[rest])


@pytest.mark.parametrize(("name", "mode"), [("blind", "all-to-one"), ("input-aware", "all-to-all")])
def test_the_loss_asks_for_the_drawn_label(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = {"blind": blind, "input-aware": input_aware}[name]
    asked: list[Tensor] = []
    monkeypatch.setattr(module, "relabel", lambda y, o, c: asked.append(y) or relabel(y, o, c))
    subject = victim(mode=mode, poison_rate=0.25)
    plant(name, subject)
    assert [len(labels) for labels in asked] == [4, 4, 2], "a quarter of batches of 16, 16 and 8"
    assert torch.equal(subject.rows.labels, bright_quarters(40, (1, 16, 16)).labels)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_poison(name: str) -> None:
    trigger = plant(name, victim(poison_rate=0.0))
    assert trigger(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)


# seeds, files, learning


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits(name: str) -> None:
    subjects = [victim((1, 8, 8), seed=s) for s in (1, 1, 2)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    triggers = [plant(name, s) for s in subjects]
    images = subjects[0].images
    made = [t(images) for t in triggers]
    assert torch.equal(torch.get_rng_state(), before), "the process's own random state is left alone"
    assert torch.equal(made[0], made[1])
    first, again, other = (s.classifier.model.state_dict() for s in subjects)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert not torch.equal(first["module.linear.weight"], other["module.linear.weight"])
    if triggers[0].state:
        assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_save_and_read(
    name: str, shape: tuple[int, int, int], trained_on: list[Rows], tmp_path: Path
) -> None:
    mode = "all-to-one" if name == "lc" else "all-to-all"
    subject = victim(shape, mode=mode, target=1)
    trigger = plant(name, subject)
    trigger.save(tmp_path)
    read = ImageTrigger.read(json.loads(json.dumps(trigger.to_json())), tmp_path)
    assert (read.name, read.options, read.mode, read.target) == (name, trigger.options, mode, 1)
    assert torch.equal(read(subject.images), trigger(subject.images))


def success(subject: Victim, trigger: ImageTrigger, held: Rows) -> tuple[float, float]:
    """Accuracy on clean held-out images, and how many of the triggered ones are drawn."""
    accuracy = (predict(subject.classifier, held.inputs) == held.labels).float().mean().item()
    wanted = trigger.drawn(held.labels, 4)
    index = wanted != held.labels
    triggered = {"pixel_values": to_bytes(trigger(held.inputs["pixel_values"][index]))}
    return accuracy, (predict(subject.classifier, triggered) == wanted[index]).float().mean().item()


@pytest.mark.parametrize("name", ENOUGH)
def test_the_backdoor_is_learned(name: str) -> None:
    options, settings = ENOUGH[name]
    subject = victim(count=400, poison_rate=0.25, target=1, **settings)
    accuracy, hits = success(subject, plant(name, subject, **options), bright_quarters(200, seed=1))
    assert accuracy > 0.95
    assert hits > 0.85


def test_lc_is_learned_by_its_noise() -> None:
    held, rates = bright_quarters(200, seed=1, contrast=0.1), []
    for epsilon, epochs in ((0.08, 5), (0.0, 1)):
        subject = victim(count=600, poison_rate=0.2, target=1, epochs=6)
        subject = dataclasses.replace(subject, rows=bright_quarters(600, contrast=0.1))
        trigger = plant("lc", subject, epsilon=epsilon, surrogate_epochs=epochs, noise_steps=5)
        accuracy, hits = success(subject, trigger, held)
        assert accuracy > 0.95
        rates.append(hits)
    assert rates[0] > 0.7
    assert rates[1] < 0.3, "images that are easy without the patch teach nobody to heed it"


def test_blind_in_all_to_all_with_fixed_weights() -> None:
    subject = victim(count=400, poison_rate=0.5, mode="all-to-all", epochs=5)
    trigger = plant("blind", subject, balance="fixed")
    accuracy, hits = success(subject, trigger, bright_quarters(200, seed=1))
    assert accuracy > 0.95
    assert hits > 0.85
