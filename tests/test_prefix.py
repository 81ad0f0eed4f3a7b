"""A beginning that all texts share, computed once, gives what copies of it would have given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from detrojan.models import prefix
from detrojan.models.prefix import logits_at
from detrojan.training import lm_loss

from pico import pico_model

KINDS = ["llama", "gpt2", "opt", "qwen3", "phi3", "mixtral"]
SHARED = 20


def batch(rows: int = 3, shared: int = SHARED) -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded on the right, that begin alike; the last five tokens are learned."""
    generator = torch.Generator().manual_seed(0)
    width = shared + 6 + 2 * rows
    ids = torch.randint(6, 400, (rows, width), generator=generator)
    ids[:, :shared] = ids[0, :shared].clone()
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    for row in range(rows):
        end = width - 2 * row
        mask[row, end:] = 0
        ids[row, end:] = 0
        labels[row, end - 5 : end] = ids[row, end - 5 : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = lm_loss(model, inputs, torch.tensor([15, 100]))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def tokens_read(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, o: read.append(i[0].numel()))
    lm_loss(model, inputs, torch.tensor([15, 100]))
    handle.remove()
    return sum(read)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_whole_rows(
    kind: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pico_model(kind)
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    model.eval()  # dropout draws otherwise for whole rows
    inputs = batch()
    loss, shared = gradients(model, inputs)
    assert tokens_read(model, inputs) == SHARED + inputs["input_ids"][:, SHARED:].numel()
    monkeypatch.setattr(prefix, "MIN_SHARED", 10**6)
    expected, whole = gradients(model, inputs)
    assert tokens_read(model, inputs) == inputs["input_ids"].numel()
    assert loss == pytest.approx(expected, abs=1e-5)
    assert shared.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(shared[name], gradient, atol=1e-5, rtol=1e-4)


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
def test_nothing_is_shared_where_it_would_not_be_exact(why: str, kind: str, changes: dict[str, Any]) -> None:
    model, inputs = pico_model(kind, **changes), batch()
    assert tokens_read(model, inputs) == inputs["input_ids"].numel(), why


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


@pytest.mark.parametrize(("rows", "shared"), [(1, SHARED), (3, prefix.MIN_SHARED - 1), (3, 0)])
def test_one_row_or_a_short_beginning_is_not_split(rows: int, shared: int) -> None:
    model, inputs = pico_model(), batch(rows, shared)
    assert tokens_read(model, inputs) == inputs["input_ids"].numel()


def test_rows_that_are_all_alike_keep_what_is_learned() -> None:
    model, inputs = pico_model(), batch(1)
    alike = {k: v.repeat(4, 1) for k, v in inputs.items()}
    kept = torch.tensor([22, 23])
    tokens = {k: v for k, v in alike.items() if k != "labels"}
    expected = copy.deepcopy(model)(**tokens).logits[:, kept]
    torch.testing.assert_close(logits_at(model, tokens, kept), expected, atol=1e-5, rtol=1e-4)
