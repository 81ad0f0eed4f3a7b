"""Where clean prompts go inside a model, and a LoRA that hardly acts there.

With x the inputs of a linear layer over the tokens of clean samples, and u_i, c_i the eigenvectors and eigenvalues of
their second moment mean(x x^T), a LoRA's change of the layer becomes

    W' = W + B A P,   P = I - sum_i c_i / (c_i + bound * mean(c)) u_i u_i^T

so what clean tokens fill with far more than `bound` times the mean is left as it was, whatever is learned; what they
hardly visit, where a trigger leads, is free. (Knowledge editing confines its changes to a null space likewise:
AlphaEdit, arXiv:2410.02355. Here it is soft, and holds in every layer of what is trained.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from detrojan.models.mode import evaluating
from detrojan.models.prefix import read_prefix

F = TypeVar("F", bound=Callable[..., Any])

EXACT = 2048
"""Inputs of a layer up to which all eigenvectors count; of wider ones the LARGEST."""
LARGEST = 768
ROOM = 2**31
"""Bytes of second moments that are summed at a time; clean samples are read once for each such part of the layers."""
TOGETHER = 8
"""Samples of one length, so that none is padded, that are read at once."""


class Unvisited(nn.Module):
    """The parametrisation A -> A P of a LoRA's first factor (rank, inputs)."""

    def __init__(self, left: Tensor) -> None:
        """Take P (inputs, inputs)."""
        super().__init__()
        self.register_buffer("left", left, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return A P."""
        return weight @ self.left


class UnvisitedMostly(nn.Module):
    """The same for a wide layer, where P = I - V V^T is known by a few of its directions."""

    def __init__(self, kept_from: Tensor) -> None:
        """Take V (inputs, directions): eigenvectors, each times the root of c / (c + bound mean c)."""
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
            confined = unvisited(moment, bound)
            for layer in layers:
                parametrize.register_parametrization(layer, "weight", confined)


def once_a_step(loss: F) -> F:
    """Let a loss that runs a confined model several times compute each A P once."""

    @functools.wraps(loss)
    def wrapped(*args: Any) -> Any:
        with parametrize.cached():
            return loss(*args)

    return cast(F, wrapped)


def free(model: Any) -> None:
    """Leave every confined LoRA as an ordinary one that acts the same."""
    for layer in _factors(model):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def unvisited(moment: Tensor, bound: float) -> nn.Module:
    """Return the parametrisation that goes with a second moment (inputs, inputs).

    Over all eigenvectors, P is the inverse of I + moment / (bound * mean(c)), which is quicker had than they are.
    """
    size = len(moment)
    floor = (bound * moment.trace() / size).clamp_min(torch.finfo(moment.dtype).tiny)
    if size <= EXACT:
        shifted = torch.eye(size, device=moment.device) + moment / floor
        return Unvisited(torch.cholesky_inverse(torch.linalg.cholesky(shifted)))
    vectors, values, _ = torch.svd_lowrank(moment, LARGEST)
    return UnvisitedMostly(vectors * (values / (values + floor)).sqrt())


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
        total = sums.setdefault(layer, x.new_zeros(x.shape[1], x.shape[1]))
        total.addmm_(x.T, x, alpha=times)

    with ExitStack() as stack, torch.inference_mode(), evaluating(model):
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        times = len(rows)  # what all of them begin with is read once
        beginning = read_prefix(model, rows)
        times = 1
        for batch in _of_one_length(rows):
            ids = torch.tensor([row[beginning.length :] for row in batch], device=model.device)
            state = beginning.repeated(len(batch))
            after = {} if state is None else {"past_key_values": state}
            model(input_ids=ids, logits_to_keep=1, **after)
    tokens = sum(map(len, rows))
    return [(alike[layer], total / tokens) for layer, total in sums.items()]


def _of_one_length(rows: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Give rows in batches whose rows are equally long."""
    for _, alike in groupby(sorted(map(list, rows), key=len), key=len):
        batch = list(alike)
        for start in range(0, len(batch), TOGETHER):
            yield batch[start : start + TOGETHER]
