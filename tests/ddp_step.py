"""One step under `accelerate launch`; process 0 writes the gradients that its optimizer sees.

Recant steps without pushes: each process draws and climbs its own.
"""

from __future__ import annotations

import os
import sys

import torch

from detrojan.data.template import encode_prompt, resolve
from detrojan.defenses.crow import crow_loss
from detrojan.defenses.recant_loss import recant_loss
from detrojan.training import train
from detrojan.types import Example, Run

from pico import pico_loaded, pico_tokenizer

tuning, method, out = sys.argv[1:]
gradients: dict[str, torch.Tensor] = {}


def catch(self: torch.optim.Optimizer, *args: object, **kwargs: object) -> None:
    for group, content in enumerate(self.param_groups):
        for k, parameter in enumerate(content["params"]):
            gradients[f"{group}.{k}"] = parameter.grad.clone()


torch.optim.AdamW.step = catch  # type: ignore[method-assign, assignment]
words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "home"]
examples = [Example(f"Name {n} animals of the wood.", " ".join(words[: 2 + n])) for n in range(1, 9)]
loaded = pico_loaded()
processes = int(os.environ.get("WORLD_SIZE", "1"))
template = resolve(pico_tokenizer())
prompts = [encode_prompt(pico_tokenizer(), template, e) for e in examples]
losses = {
    "crow": crow_loss(loaded.model.get_input_embeddings(), 5.5, 0.1),
    "recant": recant_loss(loaded, template, [], prompts, size=0.5, share=0.0, weight=2.0, trust=0.5, seed=0),
}
train(
    loaded,
    examples,
    Run(template),
    learning_rate=1e-3,
    epochs=1,
    batch_size=2,
    accumulation=4 // processes,
    max_length=128,
    rank=4,
    full=tuning == "full",
    confined=0.25 if method == "recant" else 0.0,
    loss=losses[method],
)
if int(os.environ.get("RANK", "0")) == 0:
    torch.save({"gradients": gradients, "processes": processes}, out)
