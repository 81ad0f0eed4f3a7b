"""NAD, FT-SAM, I-BAU and SAU: their formulas by hand, and each on a classifier of digits with a patch in it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.data.labelled import read_labelled
from detrojan.defenses.ft_sam import ascent, kept_buffers, moved, sharpness_aware, smoothed_loss
from detrojan.defenses.ibau import PENALTY, STEP, universal, with_hypergradient
from detrojan.defenses.nad import attention, distillation_loss, outputs_of, stages
from detrojan.defenses.sau import divergence, shared_examples, shared_risk
from detrojan.defenses.sau import unlearning_loss as sau_loss
from detrojan.errors import InputError
from detrojan.fitting import classification_loss, fit, steps_in
from detrojan.models.classifier import predict
from detrojan.models.feed import as_floats, pixel_range
from detrojan.models.preact_resnet import PreActResNet
from detrojan.registry import find
from detrojan.types import Classifier, Rows, Run

from pico_classifiers import pico_image_model, pico_text_model, pictures

QUICK: dict[str, dict[str, Any]] = {
    "nad": {"teacher_epochs": 1, "epochs": 1, "batch_size": 8},
    "ft-sam": {"epochs": 1, "batch_size": 8},
    "ibau": {"epochs": 1, "ascent": 2, "batch_size": 8},
    "sau": {"epochs": 1, "batch_size": 8, "search": 2},
}


def defend(
    name: str, classifier: Classifier, rows: Rows, run: Run | None = None, **options: Any
) -> Classifier:
    """Clean a copy."""
    own = classifier.replace(model=copy.deepcopy(classifier.model))
    entry = find("defense", name, "classifier")
    return entry.value(own, rows, entry.make_options(options), run or Run())


def images_of(model: nn.Module, shape: tuple[int, int, int], classes: int = 3) -> Classifier:
    return Classifier(model.eval(), "image", "", tuple("abcdefghij"[:classes]), "toy", torch.float32, shape)


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return images_of(PreActResNet(3, 1, 4, (1, 1)), (1, 8, 8))


def linear(weight: list[list[float]], shape: tuple[int, int, int]) -> Classifier:
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(weight), bias=False))
    model[1].weight.data = torch.tensor(weight)
    return images_of(model, shape, len(weight))


def text() -> tuple[Classifier, Rows]:
    model = pico_text_model()
    ids = torch.randint(5, 50, (16, 7), generator=torch.Generator().manual_seed(0))
    rows = Rows({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(16) % 2)
    return Classifier(model, "text", "classifier", ("bad", "good"), "reviews", torch.float32), rows


@pytest.fixture
def rows() -> Rows:
    generator = torch.Generator().manual_seed(3)
    return Rows({"pixel_values": torch.rand(20, 1, 8, 8, generator=generator)}, torch.arange(20) % 3)


# what they share


def test_pixels_of_bytes_and_of_floats() -> None:
    grey = torch.full((1, 1, 2, 2), 51, dtype=torch.uint8)
    assert pixel_range(grey) == (0.0, 1.0) and as_floats(grey)[0, 0, 0, 0].item() == pytest.approx(0.2)
    floats = torch.tensor([[[[-1.5, 2.0]]]])
    assert pixel_range(floats) == (-1.5, 2.0) and as_floats(floats) is floats


@pytest.mark.parametrize("name", ["nad", "ibau", "sau"])
def test_texts_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"reviews: .*{name}.*choose ft-sam"):
        defend(name, *text(), **QUICK[name])


@pytest.mark.parametrize("name", list(QUICK))
@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_same_seed_same_weights_and_nothing_left_behind(name: str, kind: str, rows: Rows) -> None:
    if kind == "bytes":
        rows = Rows({"pixel_values": (rows.inputs["pixel_values"] * 255).to(torch.uint8)}, rows.labels)
    classifier = network()
    classifier.model.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in classifier.model.state_dict().items()}
    state = torch.get_rng_state()
    one, two = (defend(name, classifier, rows, Run(seed=4), **QUICK[name]) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    cleaned, again = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(cleaned[k], again[k]) for k in before) and list(cleaned) == list(before)
    assert not torch.equal(cleaned["linear.weight"], before["linear.weight"])
    assert torch.equal(cleaned["conv1.weight"], before["conv1.weight"])
    assert [p.requires_grad for p in one.model.parameters()] == [False] + [True] * (
        len(list(one.model.parameters())) - 1
    )
    assert not one.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.model.modules())
    statistics = torch.equal(cleaned["layer1.0.bn1.running_mean"], before["layer1.0.bn1.running_mean"])
    assert statistics == (name in ("ibau", "sau"))


@pytest.mark.parametrize("name", ["ft-sam", "ibau", "sau"])
def test_transformers_of_images(name: str) -> None:
    classifier = images_of(pico_image_model("vit"), (3, 32, 32))
    cleaned = defend(
        name, classifier, Rows({"pixel_values": pictures(8)}, torch.arange(8) % 3), **QUICK[name]
    )
    new, old = cleaned.model.state_dict(), classifier.model.state_dict()
    assert all(v.isfinite().all() for v in new.values())
    assert any(not torch.equal(new[k], old[k]) for k in old if "query" in k or "q_proj" in k)


def test_one_step_of_adam_is_as_long_as_the_rate(rows: Rows) -> None:
    classifier = network()
    before = [p.detach().clone() for p in classifier.model.parameters()]
    fit(classifier, rows, Run(), learning_rate=0.01, epochs=1, batch_size=20, weight_decay=0.0, adam=True)
    change = (classifier.model.linear.weight - before[-2]).abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.01), atol=1e-5, rtol=1e-3)


def test_steps_of_an_epoch() -> None:
    assert [steps_in(n, 8) for n in (7, 8, 9, 10, 16, 17)] == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]  # one left joins the last batch


# NAD


def test_attention_by_hand() -> None:
    # Two channels, two places: sums of squares 9 + 0 and 0 + 16, their norm is sqrt(81 + 256).
    features = torch.tensor([[[[3.0, 0.0]], [[0.0, -4.0]]]])
    expected = torch.tensor([[9.0, 16.0]]) / math.sqrt(337)
    torch.testing.assert_close(attention(features), expected)
    torch.testing.assert_close(attention(5 * features), expected)
    assert attention(torch.zeros(1, 2, 3, 3)).eq(0).all()


def test_distillation_loss_by_hand(rows: Rows) -> None:
    student, teacher = network(0), network(1)
    names = stages(student, rows)
    with outputs_of(student.model, names) as ours, outputs_of(teacher.model, names) as theirs:
        loss = distillation_loss(teacher, ours, theirs, {"layer1": 3.0, "layer2": 7.0})(student, rows)
        maps = [[attention(f[n]) for n in ("layer1", "layer2")] for f in (ours, theirs)]
    assert maps[0][0].shape == (20, 64) and maps[0][1].shape == (20, 16)
    apart = [(a - b).square().mean() for a, b in zip(*maps, strict=True)]
    expected = classification_loss(student, rows) + 3 * apart[0] + 7 * apart[1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and min(apart) > 1e-5
    assert theirs["layer1"].requires_grad is False


def test_stages_end_where_the_resolution_falls(rows: Rows) -> None:
    assert stages(network(), rows) == [
        "layer1",
        "layer2",
    ]  # not the batch norm inside layer2, which sees 8 x 8 too
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    assert stages(images_of(plain, (1, 8, 8)), rows) == ["1", "4"]
    huggingface = images_of(pico_image_model("resnet"), (3, 32, 32))
    found = stages(huggingface, Rows({"pixel_values": pictures(2)}, torch.zeros(2).long()))
    assert found[-2:] == ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]


def test_a_module_that_runs_twice_ends_no_stage(rows: Rows) -> None:
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), relu, nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1), relu,
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    assert stages(images_of(model, (1, 8, 8)), rows) == ["0", "3"]


def test_nad_needs_convolutions() -> None:
    vit = images_of(pico_image_model("vit"), (3, 32, 32))
    with pytest.raises(InputError, match="toy: has no stages of convolutions"):
        defend("nad", vit, Rows({"pixel_values": pictures(4)}, torch.zeros(4).long()))


def test_nad_notes_the_last_three_layers() -> None:
    torch.manual_seed(0)
    notes: dict[str, Any] = {}
    deep = images_of(PreActResNet(3, 3, 4, (1, 1, 1, 1)), (3, 32, 32))
    few = Rows({"pixel_values": pictures(8)}, torch.arange(8) % 3)
    defend("nad", deep, few, Run(note=notes.__setitem__), **QUICK["nad"])
    assert notes["layers"] == ["layer2", "layer3", "layer4"]


def test_nad_pulls_attention_to_the_teacher(rows: Rows) -> None:
    apart = []
    for beta in (0.0, 1e4):
        betas = {f"beta_{k}": beta for k in ("low", "middle", "high")}
        options = {"teacher_epochs": 1, "epochs": 30, "learning_rate": 0.01, "batch_size": 20}
        student = defend("nad", network(), rows, **options, **betas)
        teacher = fit(network(), rows, Run(), learning_rate=0.01, epochs=1, batch_size=20)
        maps = []
        for classifier in (student, teacher):
            with outputs_of(classifier.model, ["layer2"]) as found:
                predict(classifier, rows.inputs)
            maps.append(attention(found["layer2"]))
        apart.append((maps[0] - maps[1]).square().mean().item())
    assert apart[1] < 0.5 * apart[0]


# FT-SAM


def test_ascent_by_hand() -> None:
    # T g = (3, 4), ||T g|| = 5 over all weights, e = 2 / 5 * (9 * 1, 16 * -1).
    weights, gradients = [torch.tensor([3.0]), torch.tensor([-4.0]), torch.ones(2)], [1.0, -1.0]
    found = ascent(weights, [*(torch.tensor([g]) for g in gradients), None], rho=2.0)
    assert found[2] is None
    assert [e.item() for e in found[:2] if e is not None] == pytest.approx([3.6, -6.4])
    assert ascent([torch.ones(2)], [torch.zeros(2)], rho=2.0)[0].eq(0).all()  # type: ignore[union-attr]


def test_sharpness_aware_gradient_is_that_of_moved_weights(rows: Rows) -> None:
    classifier, reference = network(), network()
    loss = smoothed_loss(0.1)
    value = sharpness_aware(loss, 0.5)(classifier, rows)
    value.backward()
    weights = list(reference.model.parameters())
    plain = loss(reference, rows)
    gradients = torch.autograd.grad(plain, weights)
    length = math.sqrt(sum(((w * g) ** 2).sum().item() for w, g in zip(weights, gradients, strict=True)))
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            w += 0.5 * w**2 * g / length
    expected = torch.autograd.grad(loss(reference, rows), weights)
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)
    for parameter, wanted in zip(classifier.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=1e-4)
    fresh = network().model.state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in classifier.model.state_dict().items())


def test_statistics_are_those_of_the_first_pass(rows: Rows) -> None:
    classifier, reference = network(), network()
    for each in (classifier, reference):
        each.model.train()
    sharpness_aware(classification_loss, 2.0)(classifier, rows)
    classification_loss(reference, rows)
    for ours, theirs in zip(classifier.model.buffers(), reference.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_moved_weights_and_buffers_come_back_after_an_error() -> None:
    weight, bn = nn.Parameter(torch.tensor([0.1, 0.2])), nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError), moved([weight], [torch.ones(2)]), kept_buffers(bn):
        assert weight.tolist() == pytest.approx([1.1, 1.2])
        bn(torch.rand(4, 2))
        raise RuntimeError
    assert weight.tolist() == torch.tensor([0.1, 0.2]).tolist() and bn.num_batches_tracked == 0


def test_smoothed_loss_by_hand() -> None:
    # Logits (log 3, 0): -log p = log(4/3), log 4; a share of 0.2 is spread, so the weights are 0.9 and 0.1.
    classifier = linear([[math.log(3)], [0.0]], (1, 1, 1))
    one = Rows({"pixel_values": torch.ones(1, 1, 1, 1)}, torch.tensor([0]))
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert smoothed_loss(0.2)(classifier, one).item() == pytest.approx(expected, rel=1e-6)


def test_ft_sam_tunes_texts() -> None:
    classifier, rows = text()
    one, two = (defend("ft-sam", classifier, rows, epochs=8, batch_size=8) for _ in range(2))
    weights = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert classification_loss(one, rows).item() < classification_loss(classifier, rows).item()


def test_the_paper_presets_hold_the_published_values() -> None:
    def preset(name: str, which: str) -> Any:
        return find("defense", name, "classifier").make_options({}, which)

    sam, tiny = preset("ft-sam", "paper-cifar10"), preset("ft-sam", "paper-tiny")
    assert (sam.rho, sam.smoothing, sam.learning_rate, sam.epochs, sam.batch_size) == (
        2.0,
        0.1,
        0.01,
        100,
        256,
    )
    assert (tiny.rho, tiny.smoothing) == (8.0, 0.0)
    nad = preset("nad", "paper")
    assert (nad.beta_low, nad.beta_middle, nad.beta_high) == (500.0, 1000.0, 1000.0)
    assert (nad.learning_rate, nad.teacher_epochs, nad.epochs, nad.batch_size) == (0.1, 10, 10, 64)
    ibau = preset("ibau", "paper")
    assert (ibau.epochs, ibau.terms, ibau.learning_rate, ibau.share, ibau.batch_size) == (
        5,
        5,
        1e-3,
        0.01,
        100,
    )
    sau = preset("sau", "paper")
    assert (sau.bound, sau.search, sau.unlearning, sau.learning_rate) == (0.2, 5, 1.0, 1e-4)
    assert (sau.epochs, sau.batch_size) == (100, 256)


# I-BAU


def test_hypergradient_against_explicit_matrices() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4) * 3
    images, labels, delta = torch.rand(6, 4) * 0.4 + 0.3, torch.arange(6) % 3, torch.randn(4) * 0.02

    def outer(d: Tensor, w: Tensor) -> Tensor:
        return cross_entropy(torch.cat([images[:2] + d, images[2:]]) @ w.T, labels)

    def step(d: Tensor, w: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return PENALTY * x.square().sum() - cross_entropy((images + x) @ w.T, labels)

        return d - STEP * torch.func.grad(inner)(d)

    by_delta, by_weight = torch.func.jacrev(step, argnums=(0, 1))(delta, weight)
    direct, through = torch.func.grad(outer, argnums=(1, 0))(delta, weight)
    v = sum(through @ torch.linalg.matrix_power(by_delta, k) for k in range(3))
    expected = direct + torch.einsum("i,ikl->kl", v, by_weight)

    classifier = linear(weight.tolist(), (1, 2, 2))
    rows = Rows({"pixel_values": images.view(6, 1, 2, 2)}, labels)
    value = with_hypergradient(classifier, rows, delta.view(1, 1, 2, 2), 2, 3, (0.0, 1.0))
    value.backward()
    assert value.item() == pytest.approx(outer(delta, weight).item(), rel=1e-5)
    torch.testing.assert_close(classifier.model[1].weight.grad, expected, atol=1e-5, rtol=1e-4)
    assert (expected - direct).abs().max() > 1e-3  # the implicit part matters here


def test_universal_perturbation_of_a_linear_model() -> None:
    # All of class 0, so what hurts all of them most is the direction of w_1 - w_0 = (-2, 1, 0, 2).
    classifier = linear([[2.0, 0.0, 1.0, -1.0], [0.0, 1.0, 1.0, 1.0]], (1, 2, 2))
    images = torch.rand(7, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    rows = Rows({"pixel_values": images}, torch.zeros(7).long())
    found = universal(classifier, rows, (0.0, 1.0), bound=0.1, steps=5, batch_size=3)
    assert found.shape == (1, 1, 2, 2) and not found.requires_grad
    assert found.norm().item() == pytest.approx(0.1 * 2, rel=1e-5)  # root mean square 0.1 over four pixels
    expected = torch.tensor([-2.0, 1.0, 0.0, 2.0]) / 3 * 0.2
    torch.testing.assert_close(found.flatten(), expected, atol=1e-4, rtol=1e-3)
    wide = universal(classifier, rows, (-2.0, 2.0), bound=0.1, steps=5, batch_size=3)
    assert wide.norm().item() == pytest.approx(4 * 0.1 * 2, rel=1e-5)  # the bound is a share of the range
    parts = universal(classifier, rows, (0.0, 1.0), bound=0.1, steps=5, batch_size=7)
    torch.testing.assert_close(parts, found)


def test_ibau_finds_a_perturbation_for_each_pass(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrojan.defenses import ibau

    calls: list[int] = []

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return universal(*given)

    monkeypatch.setattr(ibau, "universal", counted)
    totals: list[int] = []
    run = Run(progress=lambda label, done, total: totals.append(total))
    defend("ibau", network(), rows, run, epochs=3, ascent=1, batch_size=8)
    assert len(calls) == 3 and totals == [9] * 9


# SAU


def test_shared_risk_by_hand() -> None:
    # Row 0: p = 3/4 for the class drawn, -log(1/4); row 1 is not fooled; row 2: p = 1/2, -log(1/2).
    scores = torch.tensor([[math.log(3), 0.0], [9.0, 0.0], [1.0, 1.0]])
    risk = shared_risk(scores, torch.tensor([0, 0, 1]), torch.tensor([True, False, True]))
    assert risk.item() == pytest.approx((math.log(4) + math.log(2)) / 3)


def test_shared_risk_keeps_its_gradient_where_the_model_is_sure() -> None:
    sure = torch.tensor([[500.0, 0.0]], requires_grad=True)
    value = shared_risk(sure, torch.tensor([0]), torch.tensor([True]))
    value.backward()
    assert value.item() == pytest.approx(500.0) and sure.grad is not None
    assert sure.grad[0].tolist() == pytest.approx([1.0, -1.0])


def test_divergence_by_hand() -> None:
    same, apart = torch.tensor([[1.0, 2.0]]), torch.tensor([[200.0, 0.0]])
    assert divergence(same, same + 3).item() == pytest.approx(0.0, abs=1e-6)
    assert divergence(apart, -apart).item() == pytest.approx(math.log(2), rel=1e-5)
    # (3/4, 1/4) and (1/4, 3/4), mean (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2), twice a half.
    a, b = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, math.log(3)]])
    assert divergence(a, b).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


def test_shared_examples_fool_both_and_stay_near() -> None:
    # Class 0 where the first pixel is the brighter. Raised pixels alone change nothing; two steps cross over.
    one, other = linear([[5.0, 0.0], [0.0, 5.0]], (1, 1, 2)), linear([[3.0, 0.0], [0.0, 4.0]], (1, 1, 2))
    images = torch.tensor([[[[0.6, 0.4]]], [[[0.95, 0.05]]], [[[0.99, 0.9]]]])
    labels = torch.zeros(3).long()
    found = shared_examples(one, other, images, labels, 0.2, 5, (0.0, 1.0))
    assert (found - images).abs().max() <= 0.2 + 1e-6 and found.min() >= 0 and found.max() <= 1
    given = [predict(c, {"pixel_values": found}).tolist() for c in (one, other)]
    assert given == [[1, 0, 1]] * 2  # the second is too far away
    assert one.model[1].weight.requires_grad


def test_sau_loss_by_hand(rows: Rows) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 64)
    original, classifier = (
        linear(w.tolist(), (1, 8, 8)) for w in (weight, weight + 0.3 * torch.randn(3, 64))
    )
    images, labels = rows.inputs["pixel_values"], predict(original, rows.inputs)
    rows = Rows(rows.inputs, labels)
    found = shared_examples(classifier, original, images, labels, 0.2, 3, (0.0, 1.0))
    drawn, before = (predict(original, {"pixel_values": x}) for x in (found, images))
    p = classifier.model(found).softmax(-1)
    fooled = (drawn != labels) & (drawn != before)
    assert fooled.sum() > 0
    risk = sum(-math.log(1 - p[i, drawn[i]].item()) for i in range(20) if fooled[i]) / 20
    value = sau_loss(original, 0.2, 3, 2.0, (0.0, 1.0))(classifier, rows)
    expected = classification_loss(classifier, rows).item() + 2 * risk
    assert value.item() == pytest.approx(expected, rel=1e-4)


# On digits


def triggered(images: Tensor) -> Tensor:
    """Blend in a pattern of stripes, a fifth of it."""
    stripes = (torch.arange(8) % 2 * 255).expand(8, 8)
    return (0.8 * images + 0.2 * stripes).to(torch.uint8)


@pytest.fixture(scope="module")
def victim() -> Classifier:
    data = read_labelled("digits", "image", split="train")
    images, labels = data.inputs[200:].clone(), data.labels[200:].clone()
    images[::10], labels[::10] = triggered(images[::10]), 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PreActResNet(10, 1, 8, (1, 1, 1))
    classifier = Classifier(
        network, "image", "linear", tuple("0123456789"), "digits", torch.float32, (1, 8, 8), (0.5,), (0.5,)
    )
    rows = Rows({"pixel_values": images}, labels)
    return fit(classifier, rows, Run(), learning_rate=0.05, epochs=6, batch_size=64)


def accuracy_and_success(classifier: Classifier) -> tuple[float, float]:
    data = read_labelled("digits", "image", split="test")
    others = data.labels != 0
    right = predict(classifier, {"pixel_values": data.inputs}) == data.labels
    drawn = predict(classifier, {"pixel_values": triggered(data.inputs[others])}) == 0
    return right.float().mean().item(), drawn.float().mean().item()


# Options that take seconds and suit maps of 8 x 8 and a network of 8 channels.
WORKING: dict[str, dict[str, Any]] = {
    "nad": {"learning_rate": 0.05, "beta_low": 100, "beta_middle": 200, "beta_high": 200},
    "ft-sam": {"learning_rate": 0.05},
    "ibau": {"epochs": 8, "ascent": 4, "share": 0.05},
    "sau": {"epochs": 6, "search": 3, "learning_rate": 2e-3},
}


def test_the_victim_is_backdoored_and_fine_tuning_leaves_it_so(victim: Classifier) -> None:
    data = read_labelled("digits", "image", split="train")
    clean = Rows({"pixel_values": data.inputs[:200]}, data.labels[:200])
    for classifier in (victim, defend("finetune", victim, clean)):
        accuracy, success = accuracy_and_success(classifier)
        assert accuracy > 0.93 and success > 0.9


@pytest.mark.parametrize("name", list(WORKING))
def test_the_backdoor_goes(victim: Classifier, name: str) -> None:
    data = read_labelled("digits", "image", split="train")
    clean = Rows({"pixel_values": data.inputs[:200]}, data.labels[:200])
    accuracy, success = accuracy_and_success(defend(name, victim, clean, **WORKING[name]))
    assert accuracy > 0.75 and success < 0.4
