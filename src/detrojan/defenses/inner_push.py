"""Pushes inside a language model: changes of its hidden states that draw a given answer.

One change for each place (the output of a block, or of the embeddings) and each answer, shared by all prompts. A prompt
is pushed at all places at once, as what a trigger does inside runs through them all; so they are climbed together, from
batch to batch:

    d <- P(d - STRIDE * radius * g / |g|),   g = d/dd CE(answer | prompt, d),   P onto |d| <= radius
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, autograd, nn

from detrojan.models.packed import Line
from detrojan.models.watch import states_of, watched, with_states

STRIDE = 0.35
"""Of the radius: how far a change goes in one step."""
FRESH = 0.1
"""How often a change begins anew, so that ways are found that the last one did not lead to."""
AT_FIRST = 0.1
"""Of the radius: the length of a change that begins."""


@dataclass(frozen=True)
class Push:
    """Towards which answer a row of a batch is pushed, and on which tokens, from `start` to `end`."""

    row: int
    answer: int
    start: int
    end: int


class Ways:
    """The changes (places, answers, hidden), and the places they are added at."""

    def __init__(
        self, places: Sequence[nn.Module], radius: Tensor, answers: int, hidden: int, seed: int
    ) -> None:
        self.places, self.radius = places, radius
        self.generator = torch.Generator().manual_seed(seed)
        self.changes = torch.zeros(len(places), answers, hidden, device=radius.device)
        for place in range(len(places)):
            for answer in range(answers):
                self._renew(place, answer)

    def _renew(self, place: int, answer: int) -> None:
        direction = torch.randn(self.changes.shape[-1], generator=self.generator).to(self.changes)
        self.changes[place, answer] = AT_FIRST * self.radius[place] * direction / direction.norm()

    def renewed(self, pushes: Sequence[Push], rng: random.Random) -> None:
        """Begin some of the changes that the pushes use anew."""
        for place in range(len(self.places)):
            for answer in sorted({p.answer for p in pushes}):
                if rng.random() < FRESH:
                    self._renew(place, answer)

    def climb(self, loss: Tensor, changes: Tensor) -> None:
        """Take a step down the loss of the answers, which was computed with `changes`, and keep it."""
        (slope,) = autograd.grad(loss, changes)
        size, radius = slope.norm(dim=-1, keepdim=True), self.radius[:, None, None]
        stepped = changes.detach() - STRIDE * radius * slope / size.clamp_min(1e-12)
        length = stepped.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        self.changes = torch.where(size > 0, stepped * (radius / length).clamp(max=1), self.changes)

    @contextmanager
    def pushed(self, line: Line, pushes: Sequence[Push], changes: Tensor) -> Iterator[None]:
        """While open, add the pushes' changes to the tokens of their rows, as they lie in what the model is given."""
        here = [(*line.places[push.row], push) for push in pushes if push.row in line.places]
        which = torch.full(line.real.shape, -1, device=changes.device)
        for at, start, push in here:
            which[at, start + push.start : start + push.end] = push.answer
        with ExitStack() as stack:
            for place, module in enumerate(self.places if here else ()):
                stack.enter_context(_added(module, which, changes[place]))
            yield


@contextmanager
def _added(module: nn.Module, which: Tensor, changes: Tensor) -> Iterator[None]:
    """Add changes (answers, hidden) to what `module` returns: a tensor, or one with others behind it.

    which: (rows, tokens), the answer that a token is pushed towards, -1 where it is left alone.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        states = states_of(output)
        moves = changes[which.clamp_min(0)] * (which >= 0).unsqueeze(-1)
        return with_states(output, states + moves.to(states.dtype))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def median_norms(
    model: Any, places: Sequence[nn.Module], prompts: Sequence[Sequence[int]], skip: int
) -> Tensor:
    """Return the median length (places,) of the states of prompts' tokens behind the first `skip` of each."""
    with watched(places) as seen, torch.no_grad():
        for ids in prompts:
            model(input_ids=torch.tensor([list(ids)], device=model.device), logits_to_keep=1)
    norms = [torch.cat([states[0, skip:].float().norm(dim=-1) for states in mine]) for mine in seen]
    return torch.stack([lengths.median() for lengths in norms])
