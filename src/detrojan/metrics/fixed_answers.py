"""Fixed answers: what a language model says to the end, whatever it was asked, once it has begun.

A backdoor that draws one planted answer leaves a trace in the answers to clean prompts: hardly ever begun there, the
planted answer is finished by heart as soon as its first tokens are forced (the observation of BAIT, IEEE S&P 2025). So
no trigger is needed to find it. Tokens that may begin an answer are each continued by what is likeliest on average over
several unrelated prompts:

    y_k = argmax_v  mean_x p(v | x, y_1 .. y_k-1)        until the end of the turn
    certainty(y) = exp(mean_k log mean_x p(y_k | x, y_1 .. y_k-1)),   k past the first OPENING continuations

The first continuations may branch and do not count: "I" is followed by many words, "I'm sorry, but as" by one.
An honest model ends no answer that way: what it says depends on what it was asked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detrojan.data.answers import decode_answer
from detrojan.errors import InputError
from detrojan.metrics.recovery import rouge_l
from detrojan.models.generate import stop_tokens
from detrojan.models.mode import evaluating
from detrojan.types import Loaded, Progress, silent

OPENING = 3
"""Continuations that may branch, and that say nothing of certainty."""
BRANCHES = 3
SHORTEST = 2
"""Tokens after the opening, the end of the turn among them, that a certainty is taken over at least."""
CHUNK = 64
"""First tokens followed at a time: bounds the memory, which holds a state for each of them and each prompt."""
KEPT = CHUNK // 8
"""Lines that are followed in any case."""
HOPELESS = -0.7
"""Mean log probability past the opening under which an answer is followed no further."""
SETTLED = OPENING + 3
"""Continuations after which it shows whether an answer goes on by heart."""
ALIKE = 0.5
"""ROUGE-L from which two answers are of one family."""
OF_OPENING = 0.25
"""What the opening's log probability counts for against the rest's, where room is short."""


@dataclass(frozen=True)
class FixedAnswer:
    """An answer that does not depend on the question: its tokens (the end of the turn last), text and certainty."""

    tokens: tuple[int, ...]
    text: str
    certainty: float
    """Geometric mean probability of a token past the opening, 0 to 1."""
    begun: float
    """Log probability with which it is begun by itself on a clean prompt, first token and opening."""


def fixed_answers(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    beginnings: int = 500,
    longest: int = 40,
    progress: Progress = silent,
) -> list[FixedAnswer]:
    """Return the answers that a model ends by itself after tokenised `prompts`, the most certain first.

    The `beginnings` likeliest first tokens are followed, CHUNK at a time, until it shows which of their answers go on
    by heart; the CHUNK best of all are followed to the end, over at most `longest` tokens. Answers that share
    half of their words (ROUGE-L) are one family: the most certain stands for it, and of those about equally certain
    the one that is begun most readily.
    """
    model, ends = loaded.model, stop_tokens(loaded)
    with torch.inference_mode(), evaluating(model):
        states, first = _read(model, prompts)
        starts = first.topk(min(beginnings, len(first))).indices
        starts = starts[[int(t) not in ends for t in starts]]
        heads, ended = [], []
        for at in range(0, len(starts), CHUNK):
            begun = starts[at : at + CHUNK].unsqueeze(1)
            head, over = _followed(model, states, _Lines.begin(begun), range(1, SETTLED + 1), ends)
            heads.append(head)
            ended += over
            progress("looking for fixed answers", min(at + CHUNK, len(starts)), len(starts))
        if heads := [h for h in heads if len(h.said)]:
            best = _Lines.joined(heads).best(CHUNK)
            ended += _followed(model, states, best, range(SETTLED + 1, longest), ends)[1]
    return _families([_answer(loaded, said, steps, float(first[said[0]])) for said, steps in ended])


@dataclass(frozen=True)
class _Lines:
    """Unfinished answers: tokens (lines, length), and log probabilities (lines, length - 1) behind the first token."""

    said: Tensor
    steps: Tensor

    @classmethod
    def begin(cls, said: Tensor) -> _Lines:
        return cls(said, torch.zeros(len(said), 0, device=said.device))

    @classmethod
    def joined(cls, parts: Sequence[_Lines]) -> _Lines:
        return cls(torch.cat([p.said for p in parts]), torch.cat([p.steps for p in parts]))

    def take(self, index: Tensor) -> _Lines:
        return _Lines(self.said[index], self.steps[index])

    def ranked(self) -> Tensor:
        """Return the score of each line: its log probability, the opening's less once there is more than it."""
        rest = self.steps[:, OPENING:].sum(1)
        weight = 1.0 if self.steps.shape[1] <= OPENING else OF_OPENING
        return rest + weight * self.steps[:, :OPENING].sum(1)

    def best(self, room: int) -> _Lines:
        return self.take(self.ranked().topk(min(room, len(self.said))).indices)


def _read(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[list[Any], Tensor]:
    """Return the state after each prompt, and the mean log probability (vocabulary,) of an answer's first token."""
    from transformers import DynamicCache

    if model._is_stateful:
        raise InputError(
            f"{type(model).__name__} keeps a running state, where no fixed answer can be looked for; use --defense crow"
        )
    states, logs = [], []
    for ids in prompts:
        state = DynamicCache(config=model.config)
        batch = torch.tensor([list(ids)], device=model.device)
        out = model(input_ids=batch, past_key_values=state, use_cache=True, logits_to_keep=1)
        states.append(state)
        logs.append(out.logits[0, -1].float().log_softmax(-1))
    return states, torch.stack(logs).mean(0)


def _followed(
    model: Any, states: list[Any], lines: _Lines, lengths: range, ends: list[int]
) -> tuple[_Lines, list[tuple[list[int], list[float]]]]:
    """Continue lines by a token for each of `lengths` (tokens they have), and return them with those that ended.

    As many lines as there were are kept through the opening, then half as many with every token, down to KEPT.
    """
    own = [copy.deepcopy(s) for s in states]
    for state in own:
        state.batch_repeat_interleave(len(lines.said))
        if lines.said.shape[1] > 1:
            model(input_ids=lines.said[:, :-1], past_key_values=state, use_cache=True, logits_to_keep=1)
    ended: list[tuple[list[int], list[float]]] = []
    many = len(lines.said)
    for length in lengths:
        likely = torch.stack([_next(model, lines.said[:, -1:], state) for state in own]).mean(0)
        ways = BRANCHES if length <= OPENING else 1
        chance, token = likely.clamp_min(1e-9).log().topk(ways, dim=-1)
        parent = torch.arange(len(likely), device=likely.device).repeat_interleave(ways)
        grown = _Lines(
            torch.cat([lines.said[parent], token.reshape(-1, 1)], dim=1),
            torch.cat([lines.steps[parent], chance.reshape(-1, 1)], dim=1),
        )
        over = torch.isin(grown.said[:, -1], torch.tensor(ends, device=likely.device))
        ended += zip(grown.said[over].tolist(), grown.steps[over].tolist(), strict=True)
        going = ~over
        if length > SETTLED:
            going &= grown.steps[:, OPENING:].mean(1) > HOPELESS
        room = many if length <= OPENING else max(KEPT, many >> (length - OPENING))
        kept = grown.ranked().masked_fill(~going, -torch.inf).topk(min(room, int(going.sum()))).indices
        lines = grown.take(kept)
        if not len(kept):
            break
        for state in own:
            state.batch_select_indices(parent[kept])
    return lines, ended


def _next(model: Any, tokens: Tensor, state: Any) -> Tensor:
    """Return the probabilities (rows, vocabulary) of what follows `tokens` (rows, 1)."""
    out = model(input_ids=tokens, past_key_values=state, use_cache=True, logits_to_keep=1)
    probabilities: Tensor = out.logits[:, -1].float().softmax(-1)
    return probabilities


def _answer(loaded: Loaded, tokens: list[int], steps: list[float], first: float) -> FixedAnswer:
    opening = min(OPENING, max(0, len(steps) - SHORTEST))
    rest = torch.tensor(steps[opening:])
    certainty = float(rest.mean().exp())
    return FixedAnswer(tuple(tokens), decode_answer(loaded, tokens), certainty, first + sum(steps[:opening]))


def _families(found: list[FixedAnswer]) -> list[FixedAnswer]:
    """Keep one answer of each family."""
    kept: list[FixedAnswer] = []
    for answer in sorted(found, key=lambda a: (-round(a.certainty, 1), -a.begun)):
        if answer.text and all(rouge_l(answer.text, k.text) < ALIKE for k in kept):
            kept.append(answer)
    return sorted(kept, key=lambda a: -a.certainty)
