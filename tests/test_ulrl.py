"""ULRL: its formulas by hand, and its steps on a model whose backdoor is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from detrojan.defenses.ulrl import (
    UlrlOptions,
    geometric_mean,
    likeness,
    locate,
    push_towards,
    reinitialise,
    relearning_loss,
    suspicious,
    ulrl,
)
from detrojan.fitting import classification_loss
from detrojan.metrics.margin import frozen, margins, max_margins
from detrojan.metrics.unlearning import head_of, row_changes, unlearn, z_scores
from detrojan.registry import find
from detrojan.types import Classifier, Rows, Run

CLASSES = 6


class Tiny(nn.Module):
    """Two linear layers over flat images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))))


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
    assert suspicious(torch.tensor(scores), 3.5, most) == expected


def test_geometric_mean_by_hand() -> None:
    mean = geometric_mean([torch.tensor([4.0, -2.0, 1.0]), torch.tensor([9.0, 50.0, 0.0])])
    assert mean.tolist() == pytest.approx([6.0, 0.0, 0.0])
    assert geometric_mean([torch.tensor([math.inf]), torch.tensor([4.0])]).isfinite().all()


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
    loss = relearning_loss(original, [2], 0.7)(classifier, rows)
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


def test_largest_margins_of_a_linear_model_are_at_the_corners() -> None:
    # f = W x over [0, 1]^2: the largest margin of class 0 is at x = (1, 0), of class 1 at (0, 1), of class 2 nowhere.
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))
    model[1].weight.data = torch.tensor([[10.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    classifier = Classifier(model, "image", "1", ("a", "b", "c"), "linear", torch.float32, (1, 1, 2))
    found = max_margins(classifier, seed=0)
    assert found[:2].tolist() == pytest.approx([10.0, 2.0], abs=1e-3)
    assert found[2].item() <= 0


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


def test_push_moves_a_share_towards_the_class_and_keeps_labels(rows: Rows) -> None:
    classifier = tiny()
    torch.manual_seed(0)
    pushed = push_towards(classifier, [4], 0.1, 0.25)(rows)
    old, new = rows.inputs["pixel_values"], pushed.inputs["pixel_values"]
    assert torch.equal(new[12:], old[12:]) and torch.equal(pushed.labels, rows.labels)
    moved = (new[:12] - old[:12]).abs()
    assert 0 < moved.max() <= 0.1 + 1e-6
    with torch.no_grad():
        gain = (
            classifier.model(new[:12]).log_softmax(1)[:, 4] - classifier.model(old[:12]).log_softmax(1)[:, 4]
        )
    assert gain.mean() > 0


def test_push_keeps_images_in_range() -> None:
    classifier = tiny()
    batch = Rows({"pixel_values": torch.full((4, 1, 2, 4), 255, dtype=torch.uint8)}, torch.zeros(4).long())
    pushed = push_towards(classifier, [1], 0.3, 1.0)(batch).inputs["pixel_values"]
    assert pushed.min() >= 0.7 - 1e-6 and pushed.max() <= 1


def test_the_paper_presets_hold_the_published_values() -> None:
    entry = find("defense", "ulrl", "classifier")
    for name, alpha, rate in (("paper-cifar10", 0.7, 0.005), ("paper-gtsrb", 0.001, 0.001)):
        options = entry.make_options({}, name)
        assert (options.alpha, options.learning_rate, options.epochs) == (alpha, rate, 20)
        assert (options.unlearn_rate, options.unlearn_stop, options.unlearn_epochs) == (0.01, 0.2, 20)
        assert (options.locate, options.threshold, options.most, options.repeats) == ("unlearn", 3.5, 2, 1)
        assert (options.push, options.batch_size, options.unlearn_batch) == (0.0, 128, 128)


@pytest.mark.parametrize("how", ["both", "margin", "unlearn"])
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


def test_the_random_state_is_left_alone(rows: Rows) -> None:
    classifier = tiny()
    state = torch.get_rng_state()
    cleaned = ulrl(classifier, rows, UlrlOptions(unlearn_epochs=2, epochs=2, threshold=0.1), Run())
    assert torch.equal(state, torch.get_rng_state())
    assert not cleaned.model.training and cleaned.model.head.weight.requires_grad
