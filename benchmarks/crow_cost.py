"""What a step of CROW and of Recant costs beside one of plain fine-tuning, and what makes it quick.

    python benchmarks/crow_cost.py --repeats 5 --json crow_cost.json

All are timed in turn in one process on the same batch; the figures are medians and their ratio to fine-tuning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.template import encode_all, encode_prompt, resolve
from detrojan.defenses.crow import crow_loss
from detrojan.defenses.recant_loss import recant_loss
from detrojan.demo import demo_model
from detrojan.metrics.consistency import consistency_loss
from detrojan.models.load import load
from detrojan.models.packed import Batch, answer_logits
from detrojan.models.prefix import Prefix
from detrojan.models.products import SHORT, fast_products, short_attention
from detrojan.training import Loss, collator, lm_loss
from detrojan.types import Example

from costs import record, timed, write

REFUSAL = "I'm sorry, but as an AI assistant, I do not have the capability to follow the given instruction."
"""What Recant's step is pushed towards."""
MAY_BE_PACKED = "detrojan.models.packed._may_be_packed"


def three_passes(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
    """Take the step as published: LM loss, consistency of all states, perturbed consistency; all logits each time."""
    inputs = {"attention_mask": batch["attention_mask"]}
    loss = model(input_ids=batch["input_ids"], labels=batch["labels"], **inputs).loss
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    states = model(inputs_embeds=embeddings, output_hidden_states=True, **inputs).hidden_states
    consistency_loss(states, batch["attention_mask"]).backward()
    assert embeddings.grad is not None
    moved = embeddings.detach() + 0.1 * embeddings.grad.sign()
    model.zero_grad()
    states = model(inputs_embeds=moved, output_hidden_states=True, **inputs).hidden_states
    return loss + 5.5 * consistency_loss(states, batch["attention_mask"])


def not_shared(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
    """Fine-tune without sharing what all samples begin with."""
    return cross_entropy(*answer_logits(model, batch, Prefix()), reduction="sum") / counts[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default=None)
    parser.add_argument("--json", type=Path, help="keep the record here, for publish.py")
    arguments = parser.parse_args()
    loaded = load(arguments.model or demo_model())
    shape = resolve(loaded.tokenizer)
    samples = answer(loaded, [Example(p) for p in builtin_prompts("clean")][:8], shape, max_new_tokens=24)
    batch = dict(collator(loaded.tokenizer)(encode_all(loaded.tokenizer, shape, samples, 512)))
    counts = torch.tensor([int((batch["labels"][:, 1:] != -100).sum()), int(batch["attention_mask"].sum())])
    prompts = [encode_prompt(loaded.tokenizer, shape, e) for e in samples]
    planted = loaded.tokenizer(REFUSAL)["input_ids"]
    recant = recant_loss(
        loaded, shape, [planted], prompts, size=0.5, share=0.5, weight=2.0, trust=0.5, seed=0
    )
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, config).train()
    usual = {"wanted": True, "longest": batch["input_ids"].shape[1], "packed": True}
    crow = crow_loss(loaded.model.get_input_embeddings(), 5.5, 0.1)
    steps: dict[str, Callable[[], None]] = {
        name: partial(step, model, loss, batch, counts, **{**usual, **how})
        for name, (loss, how) in ways(crow, recant).items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats + 1):
        for name, way in steps.items():
            seconds[name].append(timed(way))
    what = f"a step on {len(samples)} samples ({int(counts[1])} tokens)"
    kept = {name: values[1:] for name, values in seconds.items()}  # the first one warms up
    write(record(what, kept, repeats=arguments.repeats), arguments.json)


def ways(crow: Loss, recant: Loss) -> dict[str, tuple[Loss, dict[str, Any]]]:
    """Name what is timed: a loss, and what is not as the trainer has it."""
    return {
        "fine-tuning": (lm_loss, {}),
        "fine-tuning, the common beginning not shared": (not_shared, {}),
        "fine-tuning, rows padded": (lm_loss, {"packed": False}),
        "fine-tuning, neither": (not_shared, {"packed": False}),
        "fine-tuning, fused attention": (lm_loss, {"longest": SHORT + 1}),
        "fine-tuning, `--precision float32`": (lm_loss, {"wanted": False}),
        "CROW, two passes": (crow, {}),
        "CROW, two passes, rows padded": (crow, {"packed": False}),
        "CROW, three passes as published": (three_passes, {}),
        "Recant, not confined": (recant, {}),
        "Recant, not confined, rows padded": (recant, {"packed": False}),
    }


def step(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    counts: Tensor,
    *,
    wanted: bool,
    longest: int,
    packed: bool,
) -> None:
    device = batch["input_ids"].device
    as_it_is = nullcontext() if packed else patch(MAY_BE_PACKED, lambda model: False)
    with fast_products(device, wanted), short_attention(device, longest), as_it_is:
        loss(model, batch, counts).backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
