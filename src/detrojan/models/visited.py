"""Where clean prompts go inside a model, and a LoRA that hardly acts there.

With x the inputs of a linear layer over the tokens of clean samples, and u_i, c_i the eigenvectors and eigenvalues of
their second moment mean(x x^T), a LoRA's change of the layer becomes

    W' = W + B A P,   P = I - sum_i c_i / (c_i + bound * mean(c)) u_i u_i^T

so what clean tokens fill with far more than `bound` times the mean is left as it was, whatever is learned; what they
hardly visit, where a trigger leads, is free. (Knowledge editing confines its changes to a null space likewise:
AlphaEdit, arXiv:2410.02355. Here it is soft, and holds in every layer of what is trained.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from detrojan.models.mode import evaluating

EXACT = 2048
"""Inputs of a layer up to which all eigenvectors are taken; of wider ones the LARGEST."""
LARGEST = 768
ROOM = 2**31
"""Bytes of second moments that are summed at a time; clean samples are read once for each such part of the layers."""


class Unvisited(nn.Module):
    """The parametrisation A -> A P of a LoRA's first factor (rank, inputs)."""

    def __init__(self, kept_from: Tensor) -> None:
        """Keep from `kept_from` (inputs, directions): eigenvectors, each times the root of c / (c + bound mean c)."""
        super().__init__()
        self.register_buffer("kept_from", kept_from, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return A P."""
        return weight - (weight @ self.kept_from) @ self.kept_from.T


def confine(model: Any, rows: Sequence[Sequence[int]], bound: float) -> None:
    """Confine the fresh LoRA of a PEFT model to what the tokenised clean `rows` hardly visit, until `free`.

    Stacked experts of a mixture, whose LoRA is not given inputs of its own, are not confined.
    """
    for part in _parts(list(_factors(model)), ROOM):
        for layers, moment in _moments(model, rows, part):
            kept_from = directions(moment, bound)
            for layer in layers:
                parametrize.register_parametrization(layer, "weight", Unvisited(kept_from))


def free(model: Any) -> None:
    """Leave every confined LoRA as an ordinary one that acts the same."""
    for layer in _factors(model):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def directions(moment: Tensor, bound: float) -> Tensor:
    """Return V (inputs, directions) with P = I - V V^T, of a second moment (inputs, inputs)."""
    size = len(moment)
    if size <= EXACT:
        values, vectors = torch.linalg.eigh(moment)
    else:
        vectors, values, _ = torch.svd_lowrank(moment, LARGEST)
    values = values.clamp_min(0)
    floor = (bound * moment.trace() / size).clamp_min(torch.finfo(moment.dtype).tiny)
    return vectors * (values / (values + floor)).sqrt()


def _factors(model: Any) -> Iterator[nn.Module]:
    """Give the first factors of a model's LoRA, in order."""
    for module in model.modules():
        yield from getattr(module, "lora_A", {}).values()


def _parts(layers: Sequence[nn.Module], room: int) -> Iterator[list[nn.Module]]:
    """Give layers in parts whose second moments take about as much room as is there."""
    part: list[nn.Module] = []
    taken = 0
    for layer in layers:
        size = 4 * layer.weight.shape[1] ** 2
        if part and taken + size > room:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += size
    if part:
        yield part


def _moments(
    model: Any, rows: Sequence[Sequence[int]], layers: Sequence[nn.Module]
) -> list[tuple[list[nn.Module], Tensor]]:
    """Return the second moment of the inputs of each layer; those that are given the very same share one."""
    alike: dict[nn.Module, list[nn.Module]] = {}
    sums: dict[nn.Module, Tensor] = {}
    last: tuple[Any, nn.Module | None] = (None, None)

    def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal last
        states, first = last
        if given[0] is states and first is not None:
            if layer not in alike[first]:
                alike[first].append(layer)
            return
        last = given[0], layer
        alike.setdefault(layer, [layer])
        x = given[0].flatten(0, -2).float()
        product = x.T @ x
        sums[layer] = sums[layer] + product if layer in sums else product

    with ExitStack() as stack, torch.no_grad(), evaluating(model):
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        for ids in rows:
            model(input_ids=torch.tensor([list(ids)], device=model.device), logits_to_keep=1)
    tokens = sum(map(len, rows))
    return [(alike[layer], total / tokens) for layer, total in sums.items()]
