"""The smallest patch for each class: its cost and what is told from it by hand, and a trigger of one pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detrojan.metrics import universal
from detrojan.metrics.inversion import Patches, cost, smallest_patches, smallness
from detrojan.metrics.margin import usual_margin
from detrojan.types import Classifier, Rows


def linear(*weight: tuple[float, ...]) -> Classifier:
    """Return a linear classifier of images of 2 x 2 pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, len(weight), bias=False))
    model[1].weight.data = torch.tensor(weight)
    names = tuple(map(str, range(len(weight))))
    return Classifier(model, "image", "1", names, "linear", torch.float32, (1, 2, 2))


def samples(*pixels: tuple[float, ...], labels: list[int]) -> Rows:
    return Rows({"pixel_values": torch.tensor(pixels).view(-1, 1, 2, 2)}, torch.tensor(labels))


# a tells class 0, b class 1; d is dark in all clean images and draws class 2.
CLEAN = samples(*[(1.0, 0.0, 0.5, 0.0)] * 20, *[(0.0, 1.0, 0.5, 0.0)] * 20, labels=[0] * 20 + [1] * 20)


def patches(*costs: float) -> Patches:
    many = len(costs)
    return Patches(torch.tensor(costs), torch.zeros(many, 1, 2, 2), torch.zeros(many, 1, 2, 2))


def test_cost_by_hand() -> None:
    # A corner of 2 x 2 in 3 x 3: four places and four ends of it, (4 + 0.35 x 4) / 9; the middle alone: one and four.
    masks = torch.zeros(2, 1, 3, 3)
    masks[0, 0, :2, :2] = 1
    masks[1, 0, 1, 1] = 1
    assert cost(masks).tolist() == pytest.approx([5.4 / 9, 2.4 / 9])
    assert cost(torch.ones(1, 1, 4, 2)).item() == 1.0  # a whole image has no ends


def test_smallness_by_hand() -> None:
    # The least of the other costs over that of the class: 0.2 / 0.1, 0.1 / 0.2, 0.1 / 0.4, each less 1.
    assert smallness(patches(0.1, 0.2, 0.4)).tolist() == pytest.approx([1.0, -0.5, -0.75])
    assert smallness(patches(1.0, 1.0, 1.0)).tolist() == [0.0, 0.0, 0.0]
    assert smallness(patches(0.1, 1.0)).tolist() == [0.0, 0.0]  # of two classes one is always smaller


def test_a_stamp_by_hand() -> None:
    made = Patches(
        torch.zeros(2),
        torch.tensor([[1.0, 0.5], [0.0, 0.0]]).view(2, 1, 1, 2),
        torch.tensor([[0.2, 0.8], [1.0, 1.0]]).view(2, 1, 1, 2),
    )
    images = torch.full((2, 1, 1, 2), 0.4)
    assert made.stamp(images, torch.tensor([0, 1])).flatten().tolist() == pytest.approx([0.2, 0.6, 0.4, 0.4])


def test_the_usual_margin_by_hand() -> None:
    # Logits (3, 1) and (0, 6): margins 2 and 6.
    rows = samples((3.0, 1.0, 0.0, 0.0), (0.0, 6.0, 0.0, 0.0), labels=[0, 1])
    assert usual_margin(linear((1.0, 0, 0, 0), (0, 1.0, 0, 0)), rows).item() == pytest.approx(4.0)


def test_one_pixel_that_draws_a_class_is_the_smallest_patch() -> None:
    # With d at 1 class 2 is ahead by 29 on every image; a and b have to be changed both for the other two classes.
    backdoored = linear((10.0, 0, 0, 0), (0, 10.0, 0, 0), (0, 0, 0, 40.0))
    found = smallest_patches(backdoored, CLEAN)
    assert smallness(found).argmax() == 2 and smallness(found)[2] > 0.5
    assert found.masks[2].flatten().argmax() == 3 and found.pixels[2].flatten()[3] > 0.5
    stamped = found.stamp(CLEAN.inputs["pixel_values"], torch.full((40,), 2))
    with torch.no_grad():
        out = backdoored.model(stamped)
    assert (out.argmax(1) == 2).all()
    # The patch takes images there by about the margin of clean ones, which is 10.
    assert (out[:, 2] - out[:, :2].max(1).values).mean() == pytest.approx(10, abs=3)


def test_what_no_patch_reaches_costs_a_whole_image() -> None:
    # The highest pixels give class 2 one tenth of the usual margin.
    found = smallest_patches(linear((10.0, 0, 0, 0), (0, 10.0, 0, 0), (0, 0, 0, 1.0)), CLEAN)
    assert found.costs[2] == 1.0 and found.masks[2].min() == 1.0


def test_patches_stay_in_the_range_of_pixels() -> None:
    rows = Rows({"pixel_values": CLEAN.inputs["pixel_values"] * 2 - 1}, CLEAN.labels)
    found = smallest_patches(linear((10.0, 0, 0, 0), (0, 10.0, 0, 0), (0, 0, 0, 40.0)), rows)
    assert found.pixels[2].flatten()[3] > 0.5 and -1 <= found.pixels.min() <= found.pixels.max() <= 1


def test_seeds_and_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 9)).requires_grad_()
    toy = Classifier(model, "image", "1", tuple("abcdefghi"), "toy", torch.float32, (1, 2, 4))
    rows = Rows({"pixel_values": torch.rand(30, 1, 2, 4, generator=generator)}, torch.arange(30) % 9)
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def costs(seed: int) -> Tensor:
        return smallest_patches(toy, rows, seed).costs

    whole = costs(1)
    assert torch.equal(whole, costs(1)) and not torch.equal(whole, costs(2)) and whole.shape == (9,)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(universal, "IMAGES_AT_A_TIME", 16)  # two classes at a time
    found = smallest_patches(toy, rows, 1, progress=lambda _l, done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)] and found.masks.shape == (9, 1, 2, 4)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
