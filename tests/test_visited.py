"""A LoRA that is confined to what clean prompts hardly visit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detrojan import training
from detrojan.data.template import encode_all
from detrojan.models import visited
from detrojan.models.visited import Unvisited, confine, free, once_a_step, unvisited
from detrojan.training import _with_lora, train
from detrojan.types import Example, Loaded, Run

from pico import KINDS, pico_model, pico_tokenizer

ROWS = [[7, 8, 9, 10, 11, 12], [20, 21, 22], [7, 30, 31, 32]]


def projection(moment: torch.Tensor, bound: float) -> torch.Tensor:
    return unvisited(moment, bound)(torch.eye(len(moment)))


def test_what_is_left_of_a_direction_by_hand() -> None:
    # Mean 1: a direction filled with 3.5 keeps 0.5 / (3.5 + 0.5) of a change, one with 0.5 half, an empty one all.
    moment = torch.diag(torch.tensor([3.5, 0.5, 0.0, 0.0]))
    expected = torch.diag(torch.tensor([0.125, 0.5, 1.0, 1.0]))
    assert torch.allclose(projection(moment, 0.5), expected, atol=1e-6)


def test_against_the_sum_over_eigenvectors() -> None:
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    moment = x.T @ x / 50
    naive = torch.eye(12)
    values, vectors = torch.linalg.eigh(moment)
    for c, u in zip(values, vectors.T, strict=True):
        naive -= c / (c + 0.1 * values.mean()) * torch.outer(u, u)
    assert torch.allclose(projection(moment, 0.1), naive, atol=1e-5)


def test_the_largest_directions_alone_of_a_wide_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visited, "EXACT", 4)
    monkeypatch.setattr(visited, "LARGEST", 3)
    moment = torch.diag(torch.tensor([9.0, 4.0, 1.0, 0.0, 0.0, 0.0]))
    torch.manual_seed(0)
    found = projection(moment, 0.1)
    assert torch.allclose(found.diagonal()[3:], torch.ones(3), atol=1e-5)
    assert torch.allclose(found, projection_of_all(moment, 0.1), atol=1e-4)


def projection_of_all(moment: torch.Tensor, bound: float) -> torch.Tensor:
    floor = bound * moment.trace() / len(moment)
    return floor * torch.linalg.inv(moment + floor * torch.eye(len(moment)))


def test_nothing_visited_leaves_a_change_as_it_is() -> None:
    assert torch.equal(projection(torch.zeros(3, 3), 0.5), torch.eye(3))


@pytest.mark.parametrize("beginning", [0, 10])
def test_a_common_beginning_and_equal_lengths_change_nothing(beginning: int) -> None:
    rows = [[*range(40, 40 + beginning), *row] for row in (*ROWS, [9, 33, 34, 35], [12, 13, 14])]
    model: Any = _with_lora(pico_model(), 4)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _m, given: seen.append(given[0][0]))
    with torch.no_grad():
        for ids in rows:
            model(input_ids=torch.tensor([ids]))
    handle.remove()
    x = torch.cat(seen)
    ((_, moment),) = visited._moments(model, rows, [layer.lora_A["default"]])
    assert torch.allclose(moment, x.T @ x / len(x), atol=1e-6)


def test_a_step_computes_each_confined_factor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = _with_lora(pico_model(), 4)
    confine(model, ROWS, 0.05)
    runs: list[int] = []
    usual = Unvisited.forward
    monkeypatch.setattr(Unvisited, "forward", lambda self, a: runs.append(1) or usual(self, a))

    def loss(model: Any) -> torch.Tensor:
        # As Recant asks for p_0: what is computed without gradients must not be what is remembered.
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=torch.tensor([ROWS[0]]))
        return sum(model(input_ids=torch.tensor([ids])).logits.square().mean() for ids in ROWS)

    def slopes(loss: Any) -> tuple[int, list[torch.Tensor]]:
        runs.clear()
        model.zero_grad()
        loss(model).backward()
        return len(runs), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    often, expected = slopes(loss)
    once, found = slopes(once_a_step(loss))
    assert often >= len(ROWS) * once > 0
    assert all(torch.allclose(f, e, atol=1e-6) for f, e in zip(found, expected, strict=True))


def inputs_of(model: Any, name: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, given: seen.append(given[0][0]))
    with torch.no_grad():
        for ids in ROWS:
            model(input_ids=torch.tensor([ids]))
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_layers_are_confined_to_what_they_are_not_given(name: str) -> None:
    model = pico_model()
    x = inputs_of(model, f"model.layers.2.{name}")
    confined: Any = _with_lora(model, 4)
    confine(confined, ROWS, 0.01)
    layer = confined.base_model.model.model.layers[2].get_submodule(name)
    factor = layer.lora_A["default"]
    before = factor.parametrizations.weight.original @ projection(x.T @ x / len(x), 0.01)
    assert torch.allclose(factor.weight, before, atol=1e-4)
    raw = x @ factor.parametrizations.weight.original.T
    assert (x @ factor.weight.T).norm() < 0.2 * raw.norm()  # 13 tokens in 32 or 64 dimensions


def test_layers_in_parts_are_as_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = (_with_lora(pico_model(), 4) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    confine(whole, ROWS, 0.05)
    monkeypatch.setattr(visited, "ROOM", 4 * 32 * 32)
    confine(parts, ROWS, 0.05)
    for one, other in zip(visited._factors(whole), visited._factors(parts), strict=True):
        assert torch.allclose(one.weight, other.weight, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_freed_lora_acts_as_the_confined_one_and_merges(kind: str) -> None:
    model: Any = _with_lora(pico_model(kind), 4)
    confine(model, ROWS, 0.05)
    assert any(isinstance(m, Unvisited) for m in model.modules())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    model.eval()
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        free(model)
        assert not any(isinstance(m, Unvisited) for m in model.modules())
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
        assert torch.allclose(model.merge_and_unload()(input_ids=ids).logits, before, atol=1e-3)


def test_what_clean_prompts_visit_is_summed_exactly(
    examples: list[Example], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded products would drown the small eigenvalues."""
    usual, seen = torch.get_float32_matmul_precision(), []
    monkeypatch.setattr(
        training, "confine", lambda *_: seen.append(torch.get_float32_matmul_precision()) or None
    )
    model = Loaded(pico_model(), pico_tokenizer(), "pico", torch.float32)
    sizes = {"batch_size": 4, "accumulation": 1, "max_length": 64, "rank": 4}
    train(model, examples, run, learning_rate=1e-3, epochs=1, confined=0.25, **sizes)
    assert seen == [usual]


def test_training_computes_each_confined_factor_once_a_step(
    examples: list[Example], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, counts, runs = Unvisited.forward, [], []
    monkeypatch.setattr(Unvisited, "forward", lambda self, a: runs.append(1) or usual(self, a))

    def loss(model: Any, batch: Any, label_counts: torch.Tensor) -> torch.Tensor:
        runs.clear()
        value = training.lm_loss(model, batch, label_counts) + training.lm_loss(model, batch, label_counts)
        counts.append(len(runs))
        return value

    model = Loaded(pico_model(), pico_tokenizer(), "pico", torch.float32)
    sizes = {"batch_size": 4, "accumulation": 1, "max_length": 64, "rank": 4}
    train(model, examples, run, learning_rate=1e-3, epochs=1, confined=0.25, loss=loss, **sizes)
    layers = 7 * len(model.model.model.layers)
    assert counts and set(counts) == {layers}


def test_training_confined_changes_clean_prompts_less(examples: list[Example], run: Run) -> None:
    assert run.template is not None
    rows = encode_all(pico_tokenizer(), run.template, examples, 64)
    ids = torch.tensor([rows[0]["input_ids"]])

    def moved(confined: float) -> float:
        model = pico_model()
        before = model(input_ids=ids).logits.detach()
        trained = train(
            Loaded(model, pico_tokenizer(), "pico", torch.float32),
            examples,
            run,
            learning_rate=1e-3,
            epochs=2,
            batch_size=4,
            accumulation=1,
            max_length=64,
            rank=4,
            confined=confined,
        )
        return float((trained.model(input_ids=ids).logits - before).norm())

    assert 0 < moved(1e-3) < 0.5 * moved(0.0)
