"""CROW's step and loss against hand-made values and a naive three-pass reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from detrojan import registry
from detrojan.data.template import encode_all
from detrojan.defenses.crow import CrowOptions, crow, crow_loss, fgsm
from detrojan.errors import NonFiniteLossError
from detrojan.metrics.consistency import consistency_loss
from detrojan.models import packed
from detrojan.training import collator
from detrojan.types import Example, Run

from pico import KINDS, pico_loaded, pico_model, pico_tokenizer


def batch_of(lengths: list[int], answer: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for n in lengths:
        ids = torch.randint(6, 200, (n,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (n - answer) + ids[n - answer :]})
    return dict(collator(pico_tokenizer())(rows))


def counts_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.tensor([int((batch["labels"][:, 1:] != -100).sum()), int(batch["attention_mask"].sum())])


def naive_crow(model: Any, batch: dict[str, torch.Tensor], alpha: float, epsilon: float) -> torch.Tensor:
    """Three passes on inputs_embeds and stacked states, straight from the paper; equal lengths only."""

    def consistency(hidden: Any) -> torch.Tensor:
        stacked = torch.stack(hidden[1:-1])
        return (1 - cosine_similarity(stacked[:-1], stacked[1:], dim=-1)).mean()

    ids, labels = batch["input_ids"], batch["labels"]
    lm_logits = model(input_ids=ids).logits[:, :-1]
    lm = cross_entropy(lm_logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    first = consistency(model(inputs_embeds=embeds, output_hidden_states=True).hidden_states)
    (gradient,) = torch.autograd.grad(first, embeds)
    moved = model.get_input_embeddings()(ids) + epsilon * gradient.sign()
    second = consistency(model(inputs_embeds=moved, output_hidden_states=True).hidden_states)
    return lm + alpha * second


def test_fgsm_by_hand() -> None:
    # objective = 3 x0 - 2 x1 + 0 x2 on one real token and one padding token.
    at = torch.zeros(1, 2, 3, requires_grad=True)
    objective = (at * torch.tensor([3.0, -2.0, 0.0])).sum()
    step = fgsm(objective, at, torch.tensor([[1, 0]]), 0.1)
    assert step[0, 0].tolist() == pytest.approx([0.1, -0.1, 0.0])
    assert step[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert at.grad is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("frozen", [False, True])
def test_whole_loss_equals_naive_reference(kind: str, frozen: bool) -> None:
    model = (
        pico_model(kind, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        if kind == "gpt2"
        else pico_model(kind)
    )
    model.train()
    model.get_input_embeddings().weight.requires_grad_(not frozen)
    batch = batch_of([9, 9, 9])
    ours = crow_loss(model.get_input_embeddings(), 5.5, 0.1)(model, batch, counts_of(batch))
    naive = naive_crow(model, batch, 5.5, 0.1)
    assert ours.item() == pytest.approx(naive.item(), abs=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(naive, parameters), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_perturbation_one_pass_gives_the_naive_loss() -> None:
    model, batch, passes = pico_model(), batch_of([9, 9]), []
    model.register_forward_hook(lambda *_: passes.append(1))
    ours = crow_loss(model.get_input_embeddings(), 5.5, 0.0)(model, batch, counts_of(batch))
    assert len(passes) == 1
    assert ours.item() == pytest.approx(naive_crow(model, batch, 5.5, 0.0).item(), abs=1e-5)


@pytest.mark.parametrize("ablation", [{"pairs": "embeddings"}, {"distance": "kl"}])
def test_ablations_are_other_losses_that_train(ablation: dict[str, str]) -> None:
    model, batch = pico_model(), batch_of([9, 9])
    published = crow_loss(model.get_input_embeddings(), 5.5, 0.1)(model, batch, counts_of(batch))
    other = crow_loss(model.get_input_embeddings(), 5.5, 0.1, **ablation)(model, batch, counts_of(batch))
    assert other.item() != pytest.approx(published.item(), abs=1e-4)
    first = next(p for name, p in model.named_parameters() if "layers.0" in name)
    (gradient,) = torch.autograd.grad(other, first)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("longest", [512, 20, 1])
def test_rows_behind_one_another_give_the_gradients_of_padded_ones(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, passes = pico_model(), batch_of([6, 12, 8]), []
    model.register_forward_hook(lambda *_: passes.append(1))
    loss, weights = crow_loss(model.get_input_embeddings(), 5.5, 0.1), list(model.parameters())
    monkeypatch.setattr(packed, "LONGEST", longest)
    mine = torch.autograd.grad(loss(model, batch, counts_of(batch)), weights)
    assert len(passes) == 2 * {512: 1, 20: 2, 1: 3}[longest]
    monkeypatch.setattr(packed, "_may_be_packed", lambda model: False)
    padded = torch.autograd.grad(loss(model, batch, counts_of(batch)), weights)
    for a, b in zip(mine, padded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing() -> None:
    model = pico_model()
    loss = crow_loss(model.get_input_embeddings(), 5.5, 0.1)
    batch = batch_of([6, 12])
    alone = []
    for row, n in enumerate([6, 12]):
        alone.append({k: v[row : row + 1, :n] for k, v in batch.items()})
    together = loss(model, batch, counts_of(batch))
    apart = sum(loss(model, b, counts_of(batch)) for b in alone)
    assert together.item() == pytest.approx(float(torch.as_tensor(apart).detach()), abs=1e-5)


def test_checkpointing_changes_nothing() -> None:
    grads = []
    for on in (False, True):
        model = pico_model().train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = batch_of([7, 9])
        crow_loss(model.get_input_embeddings(), 5.5, 0.1)(model, batch, counts_of(batch)).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_close(dtype: torch.dtype) -> None:
    model = pico_model()
    batch = batch_of([8, 8])
    exact = crow_loss(model.get_input_embeddings(), 5.5, 0.1)(model, batch, counts_of(batch))
    with torch.autocast("cpu", dtype):
        mixed = crow_loss(model.get_input_embeddings(), 5.5, 0.1)(model, batch, counts_of(batch))
    assert mixed.item() == pytest.approx(exact.item(), rel=0.05)


def test_hook_is_gone_after_an_error() -> None:
    model = pico_model(num_hidden_layers=2)
    batch = batch_of([5])
    with pytest.raises(ValueError, match="blocks"):
        crow_loss(model.get_input_embeddings(), 1.0, 0.1)(model, batch, counts_of(batch))
    assert not model.get_input_embeddings()._forward_hooks


def perturbed_consistency(loaded: Any, examples: list[Example], run: Run, epsilon: float) -> float:
    rows = encode_all(loaded.tokenizer, run.template, examples, 128)
    batch = collator(loaded.tokenizer)(rows)
    mask = batch["attention_mask"]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    embeds = loaded.model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    states = loaded.model(inputs_embeds=embeds, **inputs, output_hidden_states=True).hidden_states
    moved = embeds + fgsm(consistency_loss(states, mask), embeds, mask, epsilon)
    with torch.no_grad():
        states = loaded.model(inputs_embeds=moved, **inputs, output_hidden_states=True).hidden_states
    return consistency_loss(states, mask).item()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("full", [False, True])
def test_trains_every_architecture(kind: str, full: bool, examples: list[Example], run: Run) -> None:
    loaded = pico_loaded(kind)
    before = perturbed_consistency(loaded, examples, run, 0.1)
    options = CrowOptions(alpha=11.0, epochs=4, learning_rate=5e-3, full=full, max_length=128)
    cleaned = crow(loaded, examples, options, run)
    assert perturbed_consistency(cleaned, examples, run, 0.1) < before
    assert not any("lora" in n for n, _ in cleaned.model.named_parameters())


def test_same_seed_same_weights(examples: list[Example], run: Run) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        options = CrowOptions(epochs=1, max_length=128)
        cleaned = crow(pico_loaded(), examples, options, Run(run.template, seed))
        return dict(cleaned.model.state_dict())

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_random_state_of_the_caller_is_kept(examples: list[Example], run: Run) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    crow(pico_loaded(), examples, CrowOptions(epochs=1), run)
    assert torch.equal(torch.rand(1), expected)


def test_not_finite_loss_stops(examples: list[Example], run: Run) -> None:
    loaded = pico_loaded()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="step 1"):
        crow(loaded, examples, CrowOptions(), run)


def test_paper_preset() -> None:
    options = registry.find("defense", "crow").make_options({"alpha": 11}, "paper")
    assert (options.alpha, options.epsilon, options.learning_rate, options.epochs) == (11.0, 0.1, 1e-3, 5)
    assert options.batch_size * options.accumulation == 8
