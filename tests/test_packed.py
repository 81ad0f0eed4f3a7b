"""Rows one behind the other, and a beginning that is read once, give what each row alone would have given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import FalconConfig, FalconForCausalLM

from detrojan.defenses.inner_push import Push, Ways
from detrojan.models import packed, prefix
from detrojan.models.packed import answer_logits, lines
from detrojan.models.prefix import Prefix, begin
from detrojan.training import lm_loss

from pico import pico_model

KINDS = ["llama", "gpt2", "opt", "qwen3", "phi3", "mixtral"]
SHARED = 20


def batch(rows: int = 3, shared: int = SHARED, step: int = 7) -> dict[str, Tensor]:
    """Rows of different lengths, padded on the right, that begin alike; the last five tokens are learned.

    The last is 13 tokens longer than what is shared, each one before it by `step` more.
    """
    generator = torch.Generator().manual_seed(0)
    width = shared + 13 + step * (rows - 1)
    ids = torch.randint(6, 400, (rows, width), generator=generator)
    ids[:, :shared] = ids[0, :shared].clone()
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    for row in range(rows):
        end = width - step * row
        mask[row, end:] = 0
        ids[row, end:] = 0
        labels[row, end - 5 : end] = ids[row, end - 5 : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def alone(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The logits that predict the answers' tokens, of each row by itself, without its padding."""
    found = []
    for ids, mask, labels in zip(
        *(inputs[k] for k in ("input_ids", "attention_mask", "labels")), strict=True
    ):
        logits = model(input_ids=ids[: mask.sum()].unsqueeze(0)).logits[0]
        found.append(logits[(labels != -100).nonzero().flatten() - 1])
    return torch.cat(found)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def tokens_read(model: Any, inputs: dict[str, Tensor]) -> int:
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, o: read.append(i[0].numel()))
    lm_loss(model, inputs, torch.tensor([15, 100]))
    handle.remove()
    return sum(read)


def real(inputs: dict[str, Tensor]) -> int:
    return int(inputs["attention_mask"].sum())


def exact(model: Any, inputs: dict[str, Tensor]) -> None:
    """Hold logits, labels, loss and gradients against those of each row alone."""
    logits, labels = answer_logits(model, inputs)
    expected = alone(model, inputs)
    learned = inputs["labels"][inputs["labels"] != -100]
    assert labels.tolist() == learned.tolist()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    mine = gradients(model, lm_loss(model, inputs, torch.tensor([15, 100])))
    whole = gradients(model, torch.nn.functional.cross_entropy(expected, learned, reduction="sum") / 15)
    assert mine.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_rows_alone(kind: str, lora: bool) -> None:
    model = pico_model(kind)
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    model.eval()  # dropout draws otherwise for rows alone
    inputs = batch()
    exact(model, inputs)
    # What they begin with is read once, and no padding.
    assert tokens_read(model, inputs) == real(inputs) - 2 * SHARED


@pytest.mark.parametrize(("longest", "calls"), [(512, 1), (47, 2), (1, 3)])
def test_a_line_takes_as_many_rows_as_fit(longest: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LONGEST", longest)
    model, inputs = pico_model(), batch()
    assert (
        len(list(lines(model, inputs, begin(model, inputs)))) == calls
    )  # of 27, 20 and 13 tokens of their own
    exact(model, inputs)


def test_rows_that_share_nothing_are_not_padded_either() -> None:
    model, inputs = pico_model(), batch(shared=prefix.MIN_SHARED - 1)
    exact(model, inputs)
    assert tokens_read(model, inputs) == real(inputs)


def test_rows_of_nearly_one_length_are_quicker_beside_one_another() -> None:
    model, inputs = pico_model(), batch(step=2)
    exact(model, inputs)
    assert tokens_read(model, inputs) == SHARED + inputs["input_ids"][:, SHARED:].numel()


def test_plain_attention_takes_its_mask_as_numbers() -> None:
    model = pico_model()
    model.set_attn_implementation("eager")
    exact(model, batch())
    assert tokens_read(model, batch()) == real(batch()) - 2 * SHARED


def test_what_a_line_says_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pico_model(), batch()
    [line] = lines(model, inputs, Prefix(SHARED))
    assert line.places == {0: (0, -20), 1: (0, 7), 2: (0, 27)}  # of 27, 20 and 13 tokens behind those read
    assert line.real.shape == (1, 60) and line.real.all()
    assert line.inputs["position_ids"][0].tolist() == [*range(20, 47), *range(20, 40), *range(20, 33)]
    for row, (_, start) in line.places.items():
        own = line.inputs["input_ids"][0, start + SHARED : start + 28]
        assert own.tolist() == inputs["input_ids"][row, SHARED:28].tolist()
    monkeypatch.setattr(packed, "_may_be_packed", lambda model: False)
    [beside] = lines(model, inputs, Prefix(SHARED))
    assert beside.places == {0: (0, -20), 1: (1, -20), 2: (2, -20)}
    assert beside.real.sum(1).tolist() == [27, 20, 13]


@pytest.mark.parametrize(
    ("why", "kind", "changes"),
    [
        ("a sliding window", "gemma3_text", {}),
        ("a sliding window", "mistral", {"sliding_window": 8}),
        (
            "rotary embeddings that change",
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        ),
    ],
)
def test_rows_stay_whole_where_it_would_not_be_exact(why: str, kind: str, changes: dict[str, Any]) -> None:
    model, inputs = pico_model(kind, **changes), batch()
    assert tokens_read(model, inputs) == inputs["input_ids"].numel(), why
    logits, _ = answer_logits(model, inputs)
    torch.testing.assert_close(logits, alone(model, inputs), atol=1e-5, rtol=1e-4)


def test_where_the_mask_does_not_say_all_rows_stay_beside_one_another() -> None:
    """Falcon's older models weigh attention by the distance in the line; what all begin with may be shared."""
    config = FalconConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        multi_query=False,
    )
    torch.manual_seed(0)
    model, inputs = FalconForCausalLM(config).eval(), batch()
    assert tokens_read(model, inputs) == SHARED + inputs["input_ids"][:, SHARED:].numel()
    logits, _ = answer_logits(model, inputs)
    torch.testing.assert_close(logits, alone(model, inputs), atol=1e-5, rtol=1e-4)


def test_a_wrapped_or_checkpointing_model_runs_whole_rows() -> None:
    model, inputs = pico_model(), batch()

    class Wrapper(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, **kwargs: Any) -> Any:
            return self.module(**kwargs)

        def get_input_embeddings(self) -> Any:
            return self.module.get_input_embeddings()

    assert tokens_read(Wrapper(model), inputs) == inputs["input_ids"].numel()
    model.gradient_checkpointing_enable()
    model.train()
    assert tokens_read(model, inputs) == inputs["input_ids"].numel()


def test_one_row_is_not_split() -> None:
    model, inputs = pico_model(), batch(1)
    assert tokens_read(model, inputs) == inputs["input_ids"].numel()
    exact(model, inputs)


def test_rows_that_are_all_alike_keep_what_is_learned() -> None:
    model, inputs = pico_model(), batch(1)
    alike = {k: v.repeat(4, 1) for k, v in inputs.items()}
    assert begin(model, alike).length == int((alike["labels"][0] != -100).nonzero().min()) - 1
    exact(model, alike)


def test_a_beginning_goes_no_further_than_it_may_and_has_gradients_unless_detached() -> None:
    model, inputs = pico_model(), batch()
    assert begin(model, inputs, 9).length == 9
    assert begin(model, inputs, prefix.MIN_SHARED - 1).length == 0
    beginning = begin(model, inputs)
    assert beginning.state is not None and beginning.state.layers[0].keys.requires_grad
    cut = beginning.detached()
    assert cut.state is not None and not cut.state.layers[0].keys.requires_grad
    for _ in range(2):  # whoever goes on from it leaves it as it is
        logits, _ = answer_logits(model, inputs, beginning)
        torch.testing.assert_close(logits, alone(model, inputs), atol=1e-5, rtol=1e-4)


def test_nothing_to_learn_is_nothing_to_share() -> None:
    model, inputs = pico_model(), batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    logits, labels = answer_logits(model, inputs)
    assert logits.shape == (0, model.config.vocab_size) and not len(labels)


@pytest.mark.parametrize("longest", [512, 47, 1])
def test_pushes_follow_their_rows(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of a row's tokens give the same logits and slopes, wherever the row lies."""
    model, inputs = pico_model(), batch()
    monkeypatch.setattr(packed, "LONGEST", longest)
    places = [model.get_input_embeddings(), model.model.layers[1]]
    ways = Ways(places, torch.tensor([4.0, 4.0]), 2, model.config.hidden_size, seed=0)
    pushes = [Push(2, 1, 21, 22), Push(0, 0, 20, 23)]

    def pushed(beginning: Prefix) -> tuple[Tensor, Tensor]:
        changes = ways.changes.clone().requires_grad_()
        logits, _ = answer_logits(model, inputs, beginning, lambda line: ways.pushed(line, pushes, changes))
        (slope,) = torch.autograd.grad(logits.square().sum(), changes)
        return logits, slope

    found = pushed(begin(model, inputs))
    monkeypatch.setattr(packed, "_may_be_packed", lambda model: False)
    expected = pushed(Prefix())
    assert not torch.allclose(expected[0], alone(model, inputs), atol=0.1)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
