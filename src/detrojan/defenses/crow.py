"""CROW: internal consistency regularization (arXiv:2411.12768).

In a clean language model the hidden state changes smoothly from block to block; a trigger makes it jump. CROW
trains on a few clean samples so that the blocks stay consistent under a worst-case change of the embeddings:

    E' = E + epsilon * sign(dL_cons/dE)            (FGSM on the embedding layer's output)
    L  = L_LM(clean) + alpha * L_cons(E')

Two forward passes: the clean one gives the LM loss and the gradient at the embeddings (and at them alone), the
perturbed one gives L_cons and needs no logits. The published ablations are options: `epsilon=0` (no perturbation: one
pass), `pairs=embeddings` (the first block's turn alone), `distance=kl`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.nn.functional import cross_entropy

from detrojan.metrics.consistency import DISTANCES, PAIRS, consistency_sum
from detrojan.models.packed import Batch, Line, lines
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import Loss, train
from detrojan.types import Example, Loaded, Run


@dataclass(frozen=True)
class CrowOptions:
    """Options of CROW. The preset `paper` holds the published values (alpha 11 for refusal, 5.5 otherwise)."""

    alpha: float = option(5.5, "weight of the consistency loss", minimum=0.0, maximum=1e4)
    epsilon: float = option(0.1, "size of the embedding perturbation", minimum=0.0, maximum=100.0)
    pairs: str = option(
        "inner", "layers that are compared: inner blocks, or embeddings", choices=tuple(PAIRS)
    )
    distance: str = option("cosine", "how states are compared: cosine or kl", choices=tuple(DISTANCES))
    learning_rate: float = option(1e-3, "peak learning rate", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes over the clean samples", minimum=1, maximum=1000)
    batch_size: int = option(4, "samples in a micro-batch", minimum=1)
    accumulation: int = option(2, "micro-batches in an optimizer step", minimum=1)
    rank: int = option(8, "rank of the LoRA on all linear layers", minimum=1)
    full: bool = option(False, "tune all weights instead of a LoRA")
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)
    gradient_checkpointing: bool = option(False, "trade time for memory")


PRESETS = {
    "default": {},
    "paper": {
        "alpha": 5.5,
        "epsilon": 0.1,
        "learning_rate": 1e-3,
        "epochs": 5,
        "batch_size": 2,
        "accumulation": 4,
    },
}


@defense("crow", task="causal-lm", options=CrowOptions, paper="arXiv:2411.12768", presets=PRESETS)
def crow(loaded: Loaded, clean: Sequence[Example], options: CrowOptions, run: Run) -> Loaded:
    """Keep the layers consistent under a worst-case change of the embeddings (CROW)."""
    return train(
        loaded,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        max_length=options.max_length,
        rank=options.rank,
        full=options.full,
        gradient_checkpointing=options.gradient_checkpointing,
        loss=crow_loss(
            loaded.model.get_input_embeddings(),
            options.alpha,
            options.epsilon,
            pairs=options.pairs,
            distance=options.distance,
        ),
        label="CROW",
    )


def crow_loss(
    embeddings: nn.Module,
    alpha: float,
    epsilon: float,
    *,
    pairs: str = "inner",
    distance: str = "cosine",
) -> Loss:
    """Return CROW's loss of a step for a model whose embedding layer is `embeddings`.

    The layer is hooked, not bypassed, so that DDP, FSDP and PEFT see ordinary calls of the model.
    """

    def loss(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        value = torch.zeros((), device=counts.device)
        for line in lines(model, batch):
            language, consistency = passes(model, line)
            value = value + language / counts[0] + alpha * consistency / counts[1]
        return value

    def passes(model: nn.Module, line: Line) -> tuple[Tensor, Tensor]:
        """Return the sums over answer tokens and over real tokens that the two losses are made of."""
        seen: list[Tensor] = []

        def watch(output: Tensor) -> Tensor:
            watched = output if output.requires_grad else output.detach().requires_grad_()
            seen.append(watched)
            return watched

        with replaced_output(embeddings, watch):
            clean = model(**line.inputs, output_hidden_states=True)
        total = consistency_sum(clean.hidden_states, line.real, pairs=pairs, distance=distance)
        if epsilon:
            step = fgsm(total, seen[0], line.real, epsilon)
            with replaced_output(embeddings, lambda output: output + step):
                again = model(**{**line.inputs, "logits_to_keep": 1}, output_hidden_states=True)
            total = consistency_sum(again.hidden_states, line.real, pairs=pairs, distance=distance)
        return cross_entropy(*line.answers(clean.logits), reduction="sum"), total

    return loss


def fgsm(objective: Tensor, at: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """Return epsilon * sign(d objective / d at), zero on padding; at: (batch, tokens, hidden), mask: (batch, tokens).

    The graph of `objective` is kept, and no weight receives a gradient. A sum over tokens has the sign of the
    mean and does not underflow in half precision.
    """
    (gradient,) = autograd.grad(objective, at, retain_graph=True)
    return epsilon * gradient.sign() * mask.unsqueeze(-1).to(gradient.dtype)


@contextmanager
def replaced_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, pass the output of `module` through `change`."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
