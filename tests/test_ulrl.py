"""ULRL: its formulas by hand, and its steps on a model whose backdoor is known."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrojan.defenses import push
from detrojan.defenses import ulrl as module
from detrojan.defenses.push import push_towards
from detrojan.defenses.relearn import distance, likeness, reinitialise, with_copies
from detrojan.defenses.ulrl import (
    Finding,
    UlrlOptions,
    collapse,
    locate,
    passes,
    relearning_loss,
    suspicious,
    ulrl,
)
from detrojan.errors import InputError
from detrojan.fitting import classification_loss
from detrojan.metrics.inversion import Patches
from detrojan.metrics.margin import frozen, margins
from detrojan.metrics.unlearning import head_of, row_changes, unlearn, z_scores
from detrojan.metrics.warps import Warps
from detrojan.models.classifier import logits
from detrojan.registry import find
from detrojan.types import Classifier, Rows, Run

CLASSES = 6
NONE = torch.zeros(0)


class Tiny(nn.Module):
    """Two linear layers over flat images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))))


def wide(weight: list[list[float]]) -> Classifier:
    """Return a linear classifier of images of two pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, len(weight), bias=False))
    model[1].weight.data = torch.tensor(weight)
    names = tuple(map(str, range(len(weight))))
    return Classifier(model, "image", "1", names, "linear", torch.float32, (1, 1, 2))


def common(classes: int) -> Tensor:
    """Return changes that are shared on the way to each class, none yet."""
    return torch.zeros(classes, 1, 2, 4)


def tiny(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    names = tuple(map(str, range(CLASSES)))
    return Classifier(Tiny().eval(), "image", "head", names, "tiny", torch.float32, (1, 2, 4))


@pytest.fixture
def rows() -> Rows:
    generator = torch.Generator().manual_seed(3)
    return Rows({"pixel_values": torch.rand(48, 1, 2, 4, generator=generator)}, torch.arange(48) % CLASSES)


def test_z_scores_by_hand() -> None:
    # median 3, deviations 2 1 0 1 97, their median 1: z = (x - 3) / 1.4826.
    z = z_scores(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]))
    assert z.tolist() == pytest.approx([-1.34898, -0.67449, 0.0, 0.67449, 65.4256], abs=1e-4)


def test_z_scores_of_an_even_count_use_the_mean_of_the_middle_two() -> None:
    # median 2.5, deviations 1.5 0.5 0.5 1.5, their median 1.
    z = z_scores(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert z.tolist() == pytest.approx([-1.01174, -0.33725, 0.33725, 1.01174], abs=1e-4)


def test_z_scores_where_most_values_are_equal() -> None:
    z = z_scores(torch.tensor([1.0, 1.0, 1.0, 5.0]))
    assert z.tolist() == [0.0, 0.0, 0.0, math.inf]


@pytest.mark.parametrize(
    ("scores", "most", "expected"),
    [
        ([0.0, 9.0, 4.0, 12.0], 2, [3, 1]),
        ([0.0, 9.0, 4.0, 12.0], 1, [3]),
        ([0.0, 9.0, 4.0, 12.0], 0, []),
        ([3.5, 3.5, 0.0, 0.0], 2, []),  # above the threshold, not at it
        ([-20.0, 0.0, 0.0, 1.0], 2, []),  # below the median is never suspicious
    ],
)
def test_suspicious_rows(scores: list[float], most: int, expected: list[int]) -> None:
    assert suspicious(torch.tensor(scores), 3.5, most) == tuple(expected)


def test_share_scores_by_hand() -> None:
    assert collapse(torch.tensor([0.5, 0.3, 0.2])).tolist() == pytest.approx([1.0, 0.6, 0.4])
    assert collapse(torch.tensor([0.5, 0.5])).tolist() == [0.0, 0.0]


def test_of_two_classes_none_is_flagged_by_unlearning() -> None:
    # Both rows go half of the way, whatever the model: without care both would be drawn anew.
    classifier = wide([[1.0, -1.0], [-1.0, 1.0]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20).view(40, 1, 1, 2)
    found = locate(
        classifier, Rows({"pixel_values": images}, torch.arange(40) % 2), UlrlOptions(locate="share"), Run()
    )
    assert found.evidence.tolist() == pytest.approx([0.5, 0.5], abs=0.01) and found.suspicious == ()


NO_WARP = [-9.0, -9.0, -9.0]


@pytest.mark.parametrize(
    ("costs", "warp", "lead", "share", "scores", "expected", "hinted", "stamped"),
    [
        # Smallness 1.5, -0.6, -0.75, times 0.8 / 1.2; found, so nothing else is looked for.
        ([0.1, 0.25, 0.4], None, None, None, [1.0, -0.4, -0.5], (0,), (), "patches"),
        # One warp is ahead by 1.5, times 0.8 / 1.0, whatever the patches hint at; so no lead is asked for.
        ([0.1, 0.2, 0.4], [-1.5, 1.5, -2.0], None, None, [0.6667, 1.2, -0.5], (1,), (), "warps"),
        # Smallness 1.0, -0.5, -0.75 is a hint; the lead of 0.55 agrees, so 1.0 counts 0.8 / 0.3 times.
        ([0.1, 0.2, 0.4], NO_WARP, [0.55, -1.0, -1.0], None, [2.6667, -0.3333, -0.5], (0,), (), "patches"),
        # The lead names another class by itself, 0.8 / 0.5 times 0.7.
        ([0.1, 0.2, 0.4], NO_WARP, [-1.0, 0.7, -1.0], None, [0.6667, 1.12, -0.5], (1,), (), None),
        # A lead of 0.48 does not agree; twice the share of unlearning is above a half, or not.
        (
            [0.1, 0.2, 0.4],
            NO_WARP,
            [0.48, -1, -1],
            [0.3, 0.4, 0.3],
            [2.6667, -0.3333, -0.5],
            (0,),
            (),
            "patches",
        ),
        ([0.1, 0.2, 0.4], NO_WARP, [0.1, -1, -1], [0.2, 0.5, 0.3], [0.6667, 0.8163, -0.5], (1,), (), None),
        (
            [0.1, 0.2, 0.4],
            NO_WARP,
            [0.48, -1, -1],
            [0.2, 0.48, 0.32],
            [0.768, -0.3333, -0.5],
            (),
            (0,),
            "patches",
        ),
        # Smallness 0.25, -0.2, -0.5 is no hint, so twice the share has to be above 0.98: 0.984 counts 0.8 / 0.98 times.
        ([0.4, 0.5, 0.8], NO_WARP, [-1.0, 0.4, -1.0], [0.4, 0.3, 0.3], [0.1667, 0.64, -0.3333], (), (), None),
        (
            [0.4, 0.5, 0.8],
            NO_WARP,
            [-1, 0.4, -1],
            [0.492, 0.3, 0.208],
            [0.8033, 0.64, -0.3333],
            (0,),
            (),
            None,
        ),
        # Of a class whose patch is not the smallest too.
        (
            [0.4, 0.5, 0.8],
            NO_WARP,
            [-1, 0.4, -1],
            [0.25, 0.495, 0.255],
            [0.1667, 0.8082, -0.3333],
            (1,),
            (),
            None,
        ),
    ],
)
def test_how_the_looks_at_images_go_together(
    costs: list[float],
    warp: list[float] | None,
    lead: list[float] | None,
    share: list[float] | None,
    scores: list[float],
    expected: tuple[int, ...],
    hinted: tuple[int, ...],
    stamped: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(answer: list[float] | None) -> Tensor:
        assert answer is not None, "looked for without need"
        return torch.tensor(answer)

    patches = Patches(torch.tensor(costs), torch.zeros(3, 1, 1, 2), torch.zeros(3, 1, 1, 2))
    monkeypatch.setattr(module, "smallest_patches", lambda *_, **__: patches)
    monkeypatch.setattr(module, "universal_warps", lambda *_, **__: Warps(asked(warp), NONE))
    monkeypatch.setattr(module, "leads", lambda *_, **__: asked(lead))
    monkeypatch.setattr(module, "row_changes", lambda *_, **__: asked(share))
    rows = Rows({"pixel_values": torch.zeros(3, 1, 1, 2)}, torch.arange(3))
    found = locate(wide([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), rows, UlrlOptions(), Run())
    assert found.scores.tolist() == pytest.approx(scores, abs=1e-4) and found.suspicious == expected
    assert found.hinted == hinted  # a small patch that no other look confirms
    # Stamped only where it found the class, or hints at it.
    assert {"patches": Patches, "warps": Warps, None: type(None)}[stamped] is type(found.stamps)


@pytest.mark.parametrize(("treat", "expected"), [("hinted", [1]), ("suspicious", [])])
def test_a_mere_hint_is_stamped_and_no_row_drawn_anew(
    treat: str, expected: list[int], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros, ones = torch.zeros(CLASSES, 1, 2, 4), torch.ones(CLASSES, 1, 2, 4)
    hint = Finding("", NONE, NONE, (), Patches(torch.ones(CLASSES), ones, zeros), hinted=(1,))
    monkeypatch.setattr(module, "locate", lambda *_: hint)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        module, "logits", lambda made, inputs: seen.append(inputs["pixel_values"]) or logits(made, inputs)
    )
    notes: dict[str, Any] = {}
    model = tiny()
    before = model.model.head.weight.detach().clone()
    ulrl(model, rows, UlrlOptions(treat=treat, learning_rate=0.0), Run(note=notes.__setitem__))
    assert (notes["suspicious"], notes["hinted"]) == ([], expected)
    assert torch.equal(model.model.head.weight, before)
    stamped = [
        int((batch == 0).flatten(1).all(dim=1).sum()) for batch in seen
    ]  # the whole image is the patch
    assert set(stamped[:1]) == ({8} if expected else {0})  # a quarter of 32


def test_what_a_warp_found_is_stamped_with_that_warp(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    warps = Warps(NONE, torch.zeros(CLASSES, 2, 5, 5))
    monkeypatch.setattr(module, "locate", lambda *_: Finding("", NONE, NONE, (1,), warps))
    stamped: list[Tensor] = []

    def stamp(_: Warps, images: Tensor, classes: Tensor) -> Tensor:
        stamped.append(classes)
        return images

    monkeypatch.setattr(Warps, "stamp", stamp)
    ulrl(tiny(), rows, UlrlOptions(epochs=1, steps=1, few=0), Run())
    assert [c.tolist() for c in stamped] == [[1, 1], [1]]  # of batches of 32 and 16 a quarter of a quarter


def test_the_lead_alone_asks_neither_patches_nor_unlearning(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: Any, **__: Any) -> None:
        raise AssertionError("looked for without need")

    for look in ("smallest_patches", "universal_warps", "row_changes"):
        monkeypatch.setattr(module, look, unasked)
    monkeypatch.setattr(module, "leads", lambda *_, **__: torch.tensor([0.4, 0.1, *[-1.0] * 4]))
    assert locate(tiny(), rows, UlrlOptions(locate="lead"), Run()).suspicious == ()


def test_texts_are_judged_by_unlearning_alone(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "row_changes", lambda *_, **__: torch.tensor([0.45, 0.3, 0.25]))
    found = locate(dataclasses.replace(tiny(), task="text"), rows, UlrlOptions(), Run())
    assert found.suspicious == (0,) and found.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    for by in ("lead", "warp", "patch"):
        with pytest.raises(InputError, match=f"locate={by} changes pixels; choose share"):
            locate(dataclasses.replace(tiny(), task="text"), rows, UlrlOptions(locate=by), Run())


@pytest.mark.parametrize(
    ("adam", "task", "expected"),
    [
        ("texts", "image", (0.005, False)),
        ("texts", "text", (0.0005, True)),
        ("always", "image", (0.0005, True)),
        ("never", "text", (0.005, False)),
    ],
)
def test_relearning_by_adam(
    adam: str, task: str, expected: tuple[float, bool], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def fit(classifier: Classifier, *_: Any, **settings: Any) -> Classifier:
        seen.update(settings)
        return classifier

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "locate", lambda *_: Finding("", NONE, NONE, ()))
    ulrl(dataclasses.replace(tiny(), task=task), rows, UlrlOptions(adam=adam, distil=0.0, few=0), Run())
    assert (seen["learning_rate"], seen["adam"]) == (pytest.approx(expected[0]), expected[1])


def test_reinitialised_rows_lie_within_the_bound_and_others_stay() -> None:
    head = nn.Linear(50, 4)
    before = head.weight.detach().clone(), head.bias.detach().clone()
    reinitialise(head, [1, 3], seed=0)
    bound = math.sqrt(2 / 50)
    for k in (1, 3):
        assert head.weight[k].abs().max() <= bound
        assert head.weight[k].abs().max() > 0.8 * bound  # drawn from the whole range
        assert head.bias[k] == 0
    for k in (0, 2):
        assert torch.equal(head.weight[k], before[0][k]) and head.bias[k] == before[1][k]


def test_likeness_by_hand() -> None:
    head = nn.Linear(2, 3)
    head.weight.data = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -2.0]])
    original = torch.tensor([[0.0, 5.0], [6.0, 8.0], [0.0, 1.0]])
    assert likeness(head, original, [0]).item() == pytest.approx(0.0)
    assert likeness(head, original, [1]).item() == pytest.approx(1.0)
    assert likeness(head, original, [0, 1, 2]).item() == pytest.approx(0.0)
    assert likeness(head, original, []).item() == 0.0


def test_relearning_loss_is_cross_entropy_plus_alpha_likeness(rows: Rows) -> None:
    classifier = tiny()
    original = head_of(classifier).weight.detach().clone()
    loss = relearning_loss(original, [2], UlrlOptions(push=0, shift=0), NONE)(classifier, rows)
    assert loss.item() == pytest.approx(classification_loss(classifier, rows).item() + 0.7, abs=1e-6)


def test_unlearning_climbs_and_stops(rows: Rows) -> None:
    classifier = tiny()
    before = classification_loss(classifier, rows).item()
    settings = {"learning_rate": 0.05, "batch_size": 16}
    assert unlearn(classifier, rows, Run(), epochs=3, stop=0.0, **settings) == 3
    assert classification_loss(classifier, rows).item() > before
    assert unlearn(classifier, rows, Run(), epochs=9, stop=1.0, **settings) == 1  # at once


def test_one_step_of_unlearning_is_one_step_up(rows: Rows) -> None:
    # One full batch, no momentum yet: w' = w + lr * (dCE/dw - weight decay * w), the norm far below the clip.
    classifier, reference = tiny(), tiny()
    (gradient,) = torch.autograd.grad(classification_loss(reference, rows), [head_of(reference).weight])
    weight = head_of(reference).weight.detach()
    unlearn(classifier, rows, Run(), learning_rate=0.1, epochs=1, batch_size=len(rows), stop=0.0)
    expected = weight + 0.1 * (gradient - 5e-4 * weight)
    torch.testing.assert_close(head_of(classifier).weight.detach(), expected, atol=1e-6, rtol=1e-6)


def test_row_changes_are_shares_and_leave_the_model_alone(rows: Rows) -> None:
    classifier = tiny()
    before = copy.deepcopy(classifier.model.state_dict())
    shares = row_changes(
        classifier, rows, Run(), learning_rate=0.01, epochs=2, batch_size=16, stop=0.0, repeats=2
    )
    assert shares.shape == (CLASSES,) and shares.sum().item() == pytest.approx(1.0)
    assert all(torch.equal(v, before[k]) for k, v in classifier.model.state_dict().items())


def test_margins_by_hand() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert margins(scores, torch.tensor([0, 2])).tolist() == [1.0, -1.0]


def test_frozen_gives_everything_back() -> None:
    classifier = tiny()
    classifier.model.train()
    classifier.model.body.bias.requires_grad_(False)
    with frozen(classifier.model):
        assert (
            not any(p.requires_grad for p in classifier.model.parameters()) and not classifier.model.training
        )
    assert classifier.model.training
    assert [p.requires_grad for p in classifier.model.parameters()] == [True, False, True, True]


def test_distance_by_hand() -> None:
    # Softened by T = 2: p = (2/3, 1/3) and q = (1/2, 1/2), so KL(q || p) = log(3/4) / 2 + log(3/2) / 2 = log(9/8) / 2.
    ours, theirs = torch.tensor([[2 * math.log(2), 0.0]] * 3), torch.zeros(3, 2)
    assert distance(ours, theirs).item() == pytest.approx(4 * math.log(9 / 8) / 2, abs=1e-6)
    assert distance(theirs + 7, theirs).item() == pytest.approx(0.0, abs=1e-6)


def test_relearning_stays_near_the_targets_of_what_is_not_pushed(rows: Rows) -> None:
    classifier = tiny()
    original = head_of(classifier).weight.detach().clone()
    targets = torch.randn(len(rows), CLASSES, generator=torch.Generator().manual_seed(1))
    batch = dataclasses.replace(rows, targets=targets)
    options = UlrlOptions(alpha=0.0, distil=3.0, pushed=0.5, shift=0.0, push=1e-6)  # as good as no push
    out = classifier.model(torch.cat([rows.inputs["pixel_values"]]))
    order = push_towards(classifier, batch, [4], common(1), size=1e-6, shift=0.0, share=0.5)[0].targets
    kept = [next(i for i in range(len(rows)) if torch.equal(targets[i], t)) for t in order[24:]]
    expected = classification_loss(classifier, rows) + 3 * distance(out[kept], targets[kept])
    loss = relearning_loss(original, [4], options, common(1))(classifier, batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize(("shift", "first"), [(0.2, 9), (0.0, 6)])
def test_half_of_what_would_be_moved_is_stamped(rows: Rows, shift: float, first: int) -> None:
    # Of 12 images 6 are pushed in their pixels; of the other 6 half are moved, or none, and the rest stamped.
    def stamp(images: Tensor, classes: Tensor) -> Tensor:
        assert classes.tolist() == [4] * (12 - first)
        return torch.full_like(images, 0.5)

    pushed, count = push_towards(tiny(), rows, [4], common(1), size=0.1, shift=shift, share=0.25, stamp=stamp)
    images, others = pushed.inputs["pixel_values"], rows.labels != 4
    order = torch.cat([others.nonzero().flatten(), (~others).nonzero().flatten()])
    assert count == 12 and torch.equal(images[12:], rows.inputs["pixel_values"][order[12:]])
    assert (images[first:12] == 0.5).all() and not (images[:first] == 0.5).flatten(1).all(1).any()


@pytest.mark.parametrize(("size", "shift"), [(0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_push_changes_a_share_towards_the_class_and_keeps_labels(
    rows: Rows, size: float, shift: float
) -> None:
    classifier = tiny()
    torch.manual_seed(0)
    shared = common(1)
    pushed, count = push_towards(classifier, rows, [4], shared, size=size, shift=shift, share=0.25)
    others = rows.labels != 4
    order = torch.cat([others.nonzero().flatten(), (~others).nonzero().flatten()])
    old, new = rows.inputs["pixel_values"][order], pushed.inputs["pixel_values"]
    assert count == 12 and torch.equal(pushed.labels, rows.labels[order])
    assert torch.equal(new[count:], old[count:])
    in_pixels = slice(0, count if shift == 0 else count // 2 if size else 0)
    moved = (new[in_pixels] - old[in_pixels]).abs()
    assert not moved.numel() or 0 < moved.max() <= 0.1 + 1e-6
    assert all(not torch.equal(a, b) for a, b in zip(new[:count], old[:count], strict=True))
    with torch.no_grad():
        gain = (
            classifier.model(new[:count]).log_softmax(1)[:, 4]
            - classifier.model(old[:count]).log_softmax(1)[:, 4]
        )
    assert gain.mean() > 0


def test_images_are_not_pushed_towards_their_own_class(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def remember(_model: Classifier, ways: list[Any]) -> list[Tensor]:
        seen.extend(way.towards for way in ways)
        return [torch.zeros_like(way.change) for way in ways]

    monkeypatch.setattr(push, "_slopes", remember)
    pushed, count = push_towards(tiny(), rows, [1, 2], common(2), size=0.1, shift=0.0, share=1.0)
    (towards,) = seen
    assert count == len(rows) and set(towards[pushed.labels == 0].tolist()) == {1, 2}
    assert set(towards[pushed.labels == 1].tolist()) == {2}
    assert set(towards[pushed.labels == 2].tolist()) == {1}
    alike = Rows({"pixel_values": rows.inputs["pixel_values"][:4]}, torch.ones(4).long())
    same, none = push_towards(tiny(), alike, [1], common(1), size=0.1, shift=0.1, share=0.5)
    assert none == 0 and torch.equal(same.inputs["pixel_values"], alike.inputs["pixel_values"])


def test_the_shared_change_climbs_by_a_quarter_of_its_bound() -> None:
    # f = (a, b): towards class 1 the slope of every image is negative in a, positive in b.
    classifier = wide([[1.0, 0.0], [0.0, 1.0]])
    rows = Rows({"pixel_values": torch.full((8, 1, 1, 2), 0.5)}, torch.zeros(8).long())
    rows.inputs["pixel_values"][0] = torch.tensor([[[0.0, 1.0]]])  # the range of pixels is 0 to 1
    shared = torch.zeros(2, 1, 1, 2)
    for k in range(1, 6):
        pushed, count = push_towards(classifier, rows, [0, 1], shared, size=0.2, shift=0.0, share=1.0)
        far = min(0.05 * k, 0.2)
        assert shared[1].flatten().tolist() == pytest.approx([-far, far])
        assert count == 8 and not shared[0].any()  # no image of class 1 was there to be pushed towards 0
    last = (pushed.inputs["pixel_values"] - rows.inputs["pixel_values"])[4:]
    assert torch.allclose(last.flatten(1), torch.tensor([-0.2, 0.2]), atol=1e-6)


def test_push_keeps_images_in_range() -> None:
    classifier = tiny()
    batch = Rows({"pixel_values": torch.full((4, 1, 2, 4), 255, dtype=torch.uint8)}, torch.zeros(4).long())
    for size, shift in ((0.3, 0.0), (0.0, 0.3)):
        pushed, _ = push_towards(
            classifier, batch, [1], torch.zeros(1, 1, 2, 4), size=size, shift=shift, share=1.0
        )
        images = pushed.inputs["pixel_values"]
        assert images.min() >= 0.7 - 1e-6 and images.max() <= 1 + 1e-6


def test_moving_takes_pixels_from_nearby_alone() -> None:
    # A bright column in the middle of a dark image: after a shift of at most 5 % of 41 pixels it is still near.
    image = torch.zeros(3, 1, 41, 41)
    image[..., 20] = 1.0
    model = nn.Sequential(nn.Flatten(), nn.Linear(41 * 41, 2))
    classifier = Classifier(model, "image", "1", ("a", "b"), "linear", torch.float32, (1, 41, 41))
    rows = Rows({"pixel_values": image}, torch.zeros(3).long())
    moved, count = push_towards(classifier, rows, [1], NONE, size=0, shift=0.05, share=1.0)
    bright = moved.inputs["pixel_values"].amax(dim=(0, 1, 2)).nonzero().flatten()
    assert count == 3 and bright.min() >= 16 and bright.max() <= 24 and len(bright) > 1


def test_the_paper_presets_hold_the_published_values() -> None:
    entry = find("defense", "ulrl", "classifier")
    for name, alpha, rate in (("paper-cifar10", 0.7, 0.005), ("paper-gtsrb", 0.001, 0.001)):
        options = entry.make_options({}, name)
        assert (options.alpha, options.learning_rate, options.epochs) == (alpha, rate, 20)
        assert (options.unlearn_rate, options.unlearn_stop, options.unlearn_epochs) == (0.01, 0.2, 20)
        assert (options.locate, options.threshold, options.most, options.repeats) == ("z-score", 3.5, 2, 1)
        assert (options.push, options.shift, options.distil, options.steps) == (0.0, 0.0, 0.0, 0)
        assert (options.batch_size, options.unlearn_batch, options.few) == (128, 128, 0)


def test_gentle_is_the_default_at_half_the_rate() -> None:
    entry = find("defense", "ulrl", "classifier")
    usual, gentle = entry.make_options({}), entry.make_options({}, "gentle")
    assert gentle == dataclasses.replace(usual, learning_rate=usual.learning_rate / 2)


@pytest.mark.parametrize(("samples", "expected"), [(600, 20), (200, 29), (20, 200), (100_000, 20)])
def test_few_samples_take_more_passes(samples: int, expected: int) -> None:
    # 600 samples are 19 batches of 32: 200 / 19 = 10.5, below 20; 200 are 7: 28.6; 20 are 1.
    assert passes(UlrlOptions(), samples) == expected


@pytest.mark.parametrize("how", ["auto", "lead", "patch", "share", "z-score"])
def test_locate_and_ulrl_are_reproducible(rows: Rows, how: str) -> None:
    options = UlrlOptions(locate=how, unlearn_epochs=2, epochs=2, threshold=0.5)
    first, second = tiny(), tiny()
    found = locate(first, rows, options, Run(seed=5))
    assert torch.equal(found.scores, locate(second, rows, options, Run(seed=5)).scores)
    notes: dict[str, object] = {}
    one = ulrl(first, rows, options, Run(seed=5, note=notes.__setitem__))
    two = ulrl(second, rows, options, Run(seed=5))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert notes["suspicious"] == list(found.suspicious)


def test_ulrl_relearns_for_at_least_the_steps_asked_for(rows: Rows) -> None:
    seen: list[int] = []
    run = Run(progress=lambda label, done, total: seen.append(total) if label == "relearning" else None)
    ulrl(tiny(), rows, UlrlOptions(unlearn_epochs=1, epochs=2, steps=9, batch_size=16, few=0), run)
    assert seen == [9] * 9  # 48 samples are 3 batches of 16: 3 passes, not 2


def test_few_images_get_shifted_copies_and_a_lower_rate(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fit(classifier: Classifier, clean: Rows, *_: Any, **settings: Any) -> Classifier:
        seen.update(settings, count=len(clean), targets=clean.targets)
        return classifier

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "locate", lambda *_: Finding("", NONE, NONE, ()))
    ulrl(tiny(), rows, UlrlOptions(few=96), Run())
    assert (seen["count"], seen["learning_rate"]) == (96, pytest.approx(0.0025))  # 48 of 96: half of 0.005
    assert len(seen["targets"]) == 96  # what the original says of the copies themselves
    ulrl(tiny(), rows, UlrlOptions(few=48), Run())
    assert (seen["count"], seen["learning_rate"]) == (48, 0.005)


def test_copies_are_shifted_by_a_pixel_or_so() -> None:
    # 4 pixels wide, one lit: 0.07 of the edge is less than a pixel, so a copy moves by one at most, to 9 places.
    image = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    image[:, 0, 1, 2] = 255
    made = with_copies(Rows({"pixel_values": image}, torch.tensor([4, 5, 6])), few=100, seed=0)
    images = made.inputs["pixel_values"]
    assert len(made) == 102 and made.labels.tolist() == [4, 5, 6] * 34 and images.dtype == torch.uint8
    assert torch.equal(images[:3], image) and torch.equal(images.flatten(1).sum(1), torch.full((102,), 255))
    lit = {divmod(int(i), 4) for i in images.flatten(1).argmax(1)}
    assert lit == {(y, x) for y in (0, 1, 2) for x in (1, 2, 3)}


def test_ulrl_stays_near_the_original_answers_when_asked(rows: Rows) -> None:
    far: dict[float, float] = {}
    for weight in (0.0, 50.0):
        options = UlrlOptions(unlearn_epochs=1, steps=200, distil=weight, most=0)
        cleaned = ulrl(tiny(), rows, options, Run())
        with torch.no_grad():
            ours, theirs = (c.model(rows.inputs["pixel_values"]) for c in (cleaned, tiny()))
        far[weight] = distance(ours, theirs).item()
    assert far[50.0] < 0.1 * far[0.0]


def test_the_random_state_is_left_alone(rows: Rows) -> None:
    classifier = tiny()
    state = torch.get_rng_state()
    cleaned = ulrl(classifier, rows, UlrlOptions(unlearn_epochs=2, epochs=2, threshold=0.1), Run())
    assert torch.equal(state, torch.get_rng_state())
    assert not cleaned.model.training and cleaned.model.head.weight.requires_grad
