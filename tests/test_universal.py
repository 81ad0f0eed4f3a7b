"""One change for all images: its margins and leads by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detrojan.metrics import universal
from detrojan.metrics.universal import leads, universal_margins
from detrojan.types import Classifier, Rows


def linear(*weight: tuple[float, float]) -> Classifier:
    """Return a linear classifier of images of two pixels, a and b."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, len(weight), bias=False))
    model[1].weight.data = torch.tensor(weight)
    names = tuple(map(str, range(len(weight))))
    return Classifier(model, "image", "1", names, "linear", torch.float32, (1, 1, 2))


def samples(pixels: list[tuple[float, float]], labels: list[int]) -> Rows:
    return Rows({"pixel_values": torch.tensor(pixels).view(-1, 1, 1, 2)}, torch.tensor(labels))


def test_universal_margin_of_a_linear_model_by_hand() -> None:
    # f = (10 a, b, 0). Only the images that are not of class 0 are moved towards it, (0.5, 0.5) all of them: a goes up
    # by 0.1 and b, which speaks for class 1, down by 0.1, so the margin is 10 x 0.6 - 0.4. In a range of 0 to 2 a
    # change of 0.1 is 0.2, so there it is 10 x 0.7 - 0.3.
    model = linear((10.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    for top, expected in ((1.0, 5.6), (2.0, 6.7)):
        rows = samples([(0.0, top), (0.5, 0.5), (0.5, 0.5)], [0, 1, 2])
        assert universal_margins(model, rows, size=0.1)[0].item() == pytest.approx(expected, abs=1e-5)


def test_changed_images_stay_in_the_range_of_pixels() -> None:
    # f = (a, 0): the other image has a = 0.95, and cannot go beyond 1.
    rows = samples([(0.0, 1.0), (0.95, 0.5)], [0, 1])
    assert universal_margins(linear((1.0, 0.0), (0.0, 0.0)), rows, size=0.1)[0].item() == pytest.approx(1.0)


def test_leads_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # The highest clean logit is 4 above the second in each of the three, so leads are counted in fours.
    monkeypatch.setattr(universal, "universal_margins", lambda *_, **__: torch.tensor([1.0, 7.0, 3.0]))
    rows = samples([(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)], [0, 1, 2])
    model = linear((4.0, 0.0), (0.0, 4.0), (0.0, 0.0))
    assert leads(model, rows).tolist() == pytest.approx([-6 / 4, 4 / 4, -4 / 4])


def test_a_class_that_one_faint_pixel_draws_is_ahead() -> None:
    # a tells class 0 from 1; b is dark in all clean images and draws class 2.
    rows = samples([(1.0, 0.0)] * 20 + [(0.2, 0.0)] * 20, [0] * 20 + [1] * 20)
    backdoored, clean = (
        linear((8.0, 0.0), (-8.0, 9.0), (0.0, 90.0)),
        linear((8.0, 0.0), (-8.0, 9.0), (0.0, 9.0)),
    )
    assert leads(backdoored, rows).argmax() == 2 and leads(backdoored, rows)[2] > leads(clean, rows)[2]
    assert (leads(backdoored, rows) > 0).sum() == 1


def test_seeds_and_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 9))
    toy = Classifier(model, "image", "1", tuple("abcdefghi"), "toy", torch.float32, (1, 2, 4))
    rows = Rows({"pixel_values": torch.rand(30, 1, 2, 4, generator=generator)}, torch.arange(30) % 9)
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def found(seed: int) -> Tensor:
        return universal_margins(toy, rows, seed, size=0.1)

    whole = found(1)
    assert torch.equal(whole, found(1)) and not torch.equal(whole, found(2)) and whole.shape == (9,)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(universal, "IMAGES_AT_A_TIME", 80)  # two classes at a time
    universal_margins(toy, rows, 1, size=0.1, progress=lambda _l, done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
