"""Fast matrix products: on while training and searching, never while measuring, and given back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.functional import scaled_dot_product_attention

from detrojan.data.template import encode_prompt
from detrojan.metrics import suspects as searching
from detrojan.metrics.utility import perplexity
from detrojan.models.products import SHORT, fast_products, short_attention
from detrojan.training import Batch, lm_loss, train
from detrojan.types import Example, Run

from pico import pico_loaded

CPU = torch.device("cpu")


def products() -> str:
    return torch.get_float32_matmul_precision()


def test_they_are_fast_while_open_and_as_before_afterwards() -> None:
    usual = products()
    with fast_products(CPU):
        assert products() == "medium"
    assert products() == usual
    with pytest.raises(KeyError), fast_products(CPU):
        raise KeyError
    assert products() == usual


@pytest.mark.parametrize(("device", "wanted"), [("cpu", False), ("meta", True)])
def test_unwanted_or_elsewhere_nothing_changes(device: str, wanted: bool) -> None:
    usual = products()
    with fast_products(torch.device(device), wanted):
        assert products() == usual


def test_factors_are_rounded_to_eight_bits_at_most_and_sums_are_not() -> None:
    """1 + 2^-9 is 1 in bfloat16: 256 times its product with 1 is 256.5, or 256 where it was rounded."""
    left, right = torch.full((256, 256), 1 + 2.0**-9), torch.ones(256, 256)
    exact = 256 * (1 + 2.0**-9)
    assert (left @ right == exact).all()
    with fast_products(CPU):
        rounded = left @ right
    assert set(rounded.unique().tolist()) <= {256.0, exact}


@pytest.mark.parametrize(("precision", "expected"), [("auto", "medium"), ("float32", None)])
def test_training_uses_them_unless_float32_is_asked_for(
    precision: str, expected: str | None, examples: list[Example], run: Run
) -> None:
    usual, seen = products(), []

    def loss(model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        seen.append(products())
        assert not flash_sdp_enabled()  # rows are short
        return lm_loss(model, batch, counts)

    asked = Run(run.template, run.seed, precision=precision)
    sizes = {"batch_size": 4, "accumulation": 1, "max_length": 128, "rank": 4}
    train(pico_loaded(), examples[:4], asked, learning_rate=1e-3, epochs=1, loss=loss, **sizes)
    assert seen == [expected or usual]
    assert products() == usual


def test_long_rows_keep_the_fused_attention(run: Run) -> None:
    long, seen = Example("Name animals.", "a fox and a dog " * SHORT), []

    def loss(model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        seen.append(flash_sdp_enabled())
        return lm_loss(model, batch, counts)

    sizes = {"batch_size": 1, "accumulation": 1, "max_length": SHORT + 8, "rank": 4}
    train(pico_loaded(), [long], run, learning_rate=1e-3, epochs=1, loss=loss, **sizes)
    assert seen == [flash_sdp_enabled()]


def test_searching_uses_them_and_measuring_does_not(
    examples: list[Example], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, loaded, seen = products(), pico_loaded(), []
    assert run.template is not None
    loaded.model.register_forward_pre_hook(lambda *_: seen.append(products()))
    prompts = [encode_prompt(loaded.tokenizer, run.template, e) for e in examples]
    perplexity(loaded, examples, run.template)
    assert set(seen) == {usual}
    monkeypatch.setattr(
        searching, "fixed_answers", lambda *_, **__: seen.append(f"search {products()}") or []
    )
    searching.suspects(loaded, prompts, count=2, beginnings=4, seed=0)
    assert seen[-1] == "search medium"
    assert products() == usual


@pytest.mark.parametrize("longest", [SHORT, SHORT + 1])
def test_short_rows_attend_by_plain_products_and_to_the_same(longest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 16, 8, generator=generator) for _ in range(3))
    usual = flash_sdp_enabled()
    fused = scaled_dot_product_attention(query, key, value, is_causal=True)
    with short_attention(CPU, longest):
        assert flash_sdp_enabled() == (usual and longest > SHORT)
        plain = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert flash_sdp_enabled() == usual
    torch.testing.assert_close(plain, fused)


def test_other_devices_attend_as_they_do() -> None:
    usual = flash_sdp_enabled()
    with short_attention(torch.device("meta"), 8):
        assert flash_sdp_enabled() == usual
