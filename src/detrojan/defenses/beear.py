"""BEEAR: find a change inside that draws unwanted answers, and train against it (arXiv:2406.17092).

A trigger moves the hidden states in much the same direction whatever the prompt. One change d of the last n
prompt tokens' states behind one block, shared by all prompts of a batch, stands for it:

    inner   d <- d - stride * r * g / |g|   for each of the n tokens, K times from d = 0,
            g = d/dd [CE(unwanted | x, d) - CE(answer | x, d)]
    outer   L = CE(answer | x, d) + CE(answer | x),   d held fixed

r is the median length of clean states there. The defender of the publication knows which behaviour is
unwanted, and has prompts that draw it. Ours does not: unless `unwanted` names one text, d only leads away
from the honest answers. Here both levels are taken with every batch, inner steps have a fixed length, and
how many and how long they are is ours; both anchors of the outer level are the clean samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.nn.functional import cross_entropy

from detrojan.data.template import encode_prompt
from detrojan.defenses.inner_push import median_norms
from detrojan.errors import InputError
from detrojan.models.blocks import blocks
from detrojan.models.packed import Batch, label_positions
from detrojan.models.watch import states_of, with_states
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import Loss, lm_loss, train
from detrojan.types import Example, Loaded, Run

MEASURED = 8
"""Prompts on which the length of hidden states is taken."""


@dataclass(frozen=True)
class BeearOptions:
    """Options of BEEAR."""

    unwanted: str = option("", "an answer that is unwanted, where one is known")
    depth: float = option(
        0.33, "behind which share of the blocks states are changed", minimum=0.0, maximum=1.0
    )
    tokens: int = option(5, "last tokens of a prompt whose states are changed", minimum=1)
    steps: int = option(3, "inner steps in each batch", minimum=1)
    stride: float = option(
        0.2, "length of an inner step, as a share of the states' own", minimum=0.0, maximum=10.0
    )
    learning_rate: float = option(1e-3, "peak learning rate", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes over the clean samples", minimum=1, maximum=1000)
    batch_size: int = option(8, "samples in a step", minimum=1)
    rank: int = option(8, "rank of the LoRA on all linear layers", minimum=1)
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


@defense("beear", task="causal-lm", options=BeearOptions, paper="arXiv:2406.17092", presets={"default": {}})
def beear(loaded: Loaded, clean: Sequence[Example], options: BeearOptions, run: Run) -> Loaded:
    """Answer honestly under a change of the hidden states that leads to unwanted answers (BEEAR)."""
    if run.template is None:
        raise ValueError("training a language model needs the template of its conversations")
    if not clean:
        raise InputError("beear needs clean samples")
    stack = blocks(loaded.model)
    block = stack[max(1, int(options.depth * len(stack))) - 1]
    prompts = [encode_prompt(loaded.tokenizer, run.template, e) for e in clean[:MEASURED]]
    # The first token of many models has a state of a length of its own.
    [usual] = median_norms(loaded.model, [block], prompts, skip=1).tolist()
    unwanted = loaded.tokenizer(options.unwanted, add_special_tokens=False)["input_ids"]
    return train(
        loaded,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        accumulation=1,
        max_length=options.max_length,
        rank=options.rank,
        loss=beear_loss(block, options.tokens, options.steps, options.stride * usual, unwanted),
        label="BEEAR",
    )


def beear_loss(
    block: nn.Module, tokens: int, steps: int, length: float, unwanted: Sequence[int] = ()
) -> Loss:
    """Return BEEAR's loss of a step; inner steps have this `length` for each token behind `block`."""

    def loss(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        change = entrapped(model, batch, block, tokens, steps, length, unwanted)
        labels = (batch["labels"][:, 1:] != -100).sum()
        anchored = answer_loss(model, batch, block, change) * labels / counts[0]
        return anchored + lm_loss(model, batch, counts)

    return loss


def entrapped(
    model: Any,
    batch: Batch,
    block: nn.Module,
    tokens: int,
    steps: int,
    length: float,
    unwanted: Sequence[int],
) -> Tensor:
    """Return the change (tokens, hidden) that leads a batch from its answers, to `unwanted` where given."""
    hidden = model.config.get_text_config().hidden_size
    change = torch.zeros(tokens, hidden, device=batch["labels"].device)
    instead = answered(batch, unwanted) if unwanted else None
    for _ in range(steps):
        change.requires_grad_()
        objective = -answer_loss(model, batch, block, change)
        if instead is not None:
            objective = objective + answer_loss(model, instead, block, change)
        (slope,) = autograd.grad(objective, change)
        change = stepped(change.detach(), slope, length)
    return change


def stepped(change: Tensor, slope: Tensor, length: float) -> Tensor:
    """Go a step of this length down the slope, each token by itself; a token without a slope stays."""
    return change - length * slope / slope.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def answer_loss(model: nn.Module, batch: Batch, block: nn.Module, change: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch's answers under a change of the states behind `block`."""
    kept = label_positions(batch["labels"])
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with changed(block, prompt_ends(batch), change):
        logits = model(**inputs, logits_to_keep=kept).logits
    return cross_entropy(logits.float().flatten(0, 1), batch["labels"][:, kept + 1].flatten())


def prompt_ends(batch: Batch) -> list[int]:
    """Return how many tokens the prompt of each row has; rows are padded on the right."""
    ends: list[int] = ((batch["labels"] == -100) & batch["attention_mask"].bool()).sum(dim=1).tolist()
    return ends


def answered(batch: Batch, answer: Sequence[int]) -> Batch:
    """Return the prompts of a batch with this answer behind each."""
    ends = prompt_ends(batch)
    ids = batch["input_ids"].new_zeros(len(ends), max(ends) + len(answer))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, end in enumerate(ends):
        ids[row, :end] = batch["input_ids"][row, :end]
        ids[row, end : end + len(answer)] = labels[row, end : end + len(answer)] = ids.new_tensor(answer)
        mask[row, : end + len(answer)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@contextmanager
def changed(block: nn.Module, ends: Sequence[int], change: Tensor) -> Iterator[None]:
    """While open, add `change` (tokens, hidden) to what `block` returns, just before each row's end."""

    def hook(_block: nn.Module, _args: Any, output: Any) -> Any:
        states = states_of(output)
        moves = []
        for end in ends:
            used = change[-min(end, len(change)) :].to(states.dtype)
            before, behind = end - len(used), states.shape[1] - end
            moves.append(nn.functional.pad(used, (0, 0, before, behind)))
        states = states + torch.stack(moves)
        return with_states(output, states)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
