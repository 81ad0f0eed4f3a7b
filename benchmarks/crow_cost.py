"""What a step of CROW costs beside one of plain fine-tuning and the published three-pass one, and what makes it quick.

    python benchmarks/crow_cost.py --repeats 5 --json crow_cost.json

All are timed in turn in one process on the same batch; the figures are medians and their ratio to fine-tuning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.template import encode_all, resolve
from detrojan.defenses.crow import crow_loss
from detrojan.demo import demo_model
from detrojan.metrics.consistency import consistency_loss
from detrojan.models.load import load
from detrojan.models.packed import Batch, answer_logits, label_positions
from detrojan.models.prefix import Prefix
from detrojan.models.products import SHORT, fast_products, short_attention
from detrojan.training import Loss, collator, lm_loss
from detrojan.types import Example

from costs import record, timed, write


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


def padded_rows(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
    """Fine-tune on rows that are padded, and without sharing what all of them begin with."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    kept = label_positions(batch["labels"])
    logits = model(**inputs, logits_to_keep=kept).logits
    return (
        cross_entropy(logits.flatten(0, 1), batch["labels"][:, kept + 1].flatten(), reduction="sum")
        / counts[0]
    )


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
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, config).train()
    longest = batch["input_ids"].shape[1]
    steps: dict[str, Callable[[], None]] = {
        name: partial(step, model, loss, batch, counts, **{"wanted": True, "longest": longest, **how})
        for name, (loss, how) in ways(crow_loss(loaded.model.get_input_embeddings(), 5.5, 0.1)).items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats + 1):
        for name, way in steps.items():
            seconds[name].append(timed(way))
    what = f"a step on {len(samples)} samples ({int(counts[1])} tokens)"
    kept = {name: values[1:] for name, values in seconds.items()}  # the first one warms up
    write(record(what, kept, repeats=arguments.repeats), arguments.json)


def ways(crow: Loss) -> dict[str, tuple[Loss, dict[str, Any]]]:
    """Name what is timed: a loss, and what is not as the trainer has it."""
    return {
        "fine-tuning": (lm_loss, {}),
        "fine-tuning, the common beginning not shared": (not_shared, {}),
        "fine-tuning, nor rows without padding": (padded_rows, {}),
        "fine-tuning, fused attention": (lm_loss, {"longest": SHORT + 1}),
        "fine-tuning, `--precision float32`": (lm_loss, {"wanted": False}),
        "CROW, two passes": (crow, {}),
        "CROW, three passes as published": (three_passes, {}),
    }


def step(model: nn.Module, loss: Loss, batch: Batch, counts: Tensor, *, wanted: bool, longest: int) -> None:
    device = batch["input_ids"].device
    with fast_products(device, wanted), short_attention(device, longest):
        loss(model, batch, counts).backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
