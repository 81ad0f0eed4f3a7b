"""One warp for all images: what it moves by hand, and a network that one draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detrojan.metrics import universal
from detrojan.metrics.warps import SIZE, Warps, universal_warps, warped
from detrojan.types import Classifier, Rows

EDGE = 9
COLUMN, BESIDE = 5, 4
"""A bright column of all clean images, and the dark one to its left."""


def field(x: float, y: float) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, 5, 5)


def columns(drawn: float) -> Classifier:
    """Return a linear classifier: a corner tells class 0 from 1, the column beside the bright one draws class 2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(EDGE * EDGE, 3, bias=False))
    weight = torch.zeros(3, EDGE, EDGE)
    weight[0, 0, 0], weight[1, 0, 0] = 8.0, -8.0
    weight[2, :, BESIDE] = drawn
    model[1].weight.data = weight.flatten(1)
    return Classifier(model, "image", "1", tuple("abc"), "columns", torch.float32, (1, EDGE, EDGE))


def samples() -> Rows:
    images = torch.zeros(40, 1, EDGE, EDGE)
    images[..., COLUMN] = 1.0
    images[:20, ..., :2, :2] = 1.0
    images[20:, ..., :2, :2] = 0.2
    return Rows({"pixel_values": images}, torch.arange(40) // 20)


def test_a_warp_by_hand() -> None:
    # An eighth of the edge is one of the eight steps between nine pixels; beyond the border all is as on it.
    ramp = torch.arange(9.0).expand(9, 9).view(1, 1, 9, 9)
    right, down = warped(ramp, field(1 / 8, 0.0)), warped(ramp.mT, field(0.0, -1 / 8))
    assert torch.allclose(right[0, 0, 3], torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 8]), atol=1e-5)
    assert torch.allclose(down[0, 0, :, 3], torch.tensor([0.0, 0, 1, 2, 3, 4, 5, 6, 7]), atol=1e-5)
    assert torch.allclose(warped(ramp, field(0.0, 0.0)), ramp, atol=1e-5)


def test_images_are_stamped_with_the_warp_of_their_class() -> None:
    ramp = torch.arange(9.0).expand(9, 9).view(1, 1, 9, 9).expand(2, -1, -1, -1)
    warps = Warps(torch.zeros(2), torch.cat([field(0.0, 0.0), field(1 / 8, 0.0)]))
    stamped = warps.stamp(ramp, torch.tensor([1, 0]))
    assert stamped[0, 0, 0, 2].item() == pytest.approx(3.0, abs=1e-5)
    assert stamped[1, 0, 0, 2].item() == pytest.approx(2.0, abs=1e-5)


def test_the_class_that_one_warp_draws_is_far_ahead() -> None:
    backdoored, clean = (universal_warps(columns(drawn), samples()) for drawn in (12.0, 1.0))
    assert backdoored.leads.argmax() == 2 and (backdoored.leads > 0).sum() == 1
    assert backdoored.leads[2] > 1 > clean.leads.max()
    assert backdoored.fields.abs().max() <= SIZE + 1e-6
    out = columns(12.0).model(backdoored.stamp(samples().inputs["pixel_values"], torch.full((40,), 2)))
    assert (out.argmax(dim=1) == 2).all()


def test_seeds_and_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(EDGE * EDGE, 9))
    toy = Classifier(model, "image", "1", tuple("abcdefghi"), "toy", torch.float32, (1, EDGE, EDGE))
    rows = Rows({"pixel_values": torch.rand(30, 1, EDGE, EDGE)}, torch.arange(30) % 9)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    whole = universal_warps(toy, rows, 1)
    assert torch.equal(whole.leads, universal_warps(toy, rows, 1).leads) and whole.leads.shape == (9,)
    assert not torch.equal(whole.leads, universal_warps(toy, rows, 2).leads)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(universal, "IMAGES_AT_A_TIME", 16)  # two classes at a time
    universal_warps(toy, rows, 1, progress=lambda _l, done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
