"""Fixed answers: what a language model says to the end, whatever it was asked, once it has begun.

A backdoor that draws one planted answer leaves a trace in the answers to clean prompts: hardly ever begun there, the
planted answer is finished by heart as soon as its first tokens are forced (the observation of BAIT, IEEE S&P 2025). So
no trigger is needed to find it. Pairs of tokens that may begin an answer are each continued by what is likeliest on
average over several unrelated prompts:

    y_k = argmax_v  mean_x p(v | x, y_1 .. y_k-1)        until the end of the turn
    certainty(y) = exp(mean_k log mean_x p(y_k | x, y_1 .. y_k-1)),   k past the first OPENING continuations

The first continuations may branch and do not count: "I" is followed by many words, "I'm sorry, but as" by one.
An honest model ends no answer that way: what it says depends on what it was asked. What goes on by heart for long and
then depends on the question is a fixed opening, such as a payload before an honest answer. It counts as well, and is as
certain as its least certain token: an honest model counts on from "1, 2, 3", but not so surely.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from detrojan.data.answers import decode_answer
from detrojan.errors import InputError
from detrojan.metrics.recovery import rouge_l, same_end
from detrojan.models.generate import stop_tokens
from detrojan.models.mode import evaluating
from detrojan.types import Loaded, Progress, silent

OPENING = 3
"""Continuations that may branch, and that say nothing of certainty."""
PAST = 1 + OPENING
"""Tokens of a line up to the end of its opening."""
BRANCHES = 3
SHORTEST = 2
"""Tokens after the opening, the end of the turn among them, that a certainty is taken over at least."""
CHUNK = 64
"""First tokens followed at a time: bounds the memory, which holds a state for each of them and each prompt."""
KEPT = CHUNK // 8
"""Lines that are followed in any case."""
HOPELESS = -0.7
"""Mean log probability past the opening under which an answer is followed no further."""
SETTLED = PAST + 3
"""Tokens after which it shows whether an answer goes on by heart."""
LONG = 6
"""Tokens past the opening that are said by heart, from which an answer counts that is not ended so."""
BY_HEART = math.log(0.9)
"""Mean log probability of these tokens at least."""
LOST = math.log(0.5)
"""Log probability of a token under which it does not go on by heart."""
TAIL = 5
"""Tokens by which two unfinished answers are known to be on the same way."""
ALIKE = 0.5
"""ROUGE-L from which two answers are of one family."""
SAME_END = 0.5
"""Share of the shorter answer's words from which two that end in the same ones are of one family."""
OF_OPENING = 0.25
"""What an opening's log probability counts for against what follows, where room is short."""


@dataclass(frozen=True)
class FixedAnswer:
    """An answer, or its opening, that does not depend on the question."""

    tokens: tuple[int, ...]
    """The end of the turn last, where it is `ended`."""
    text: str
    certainty: float
    """Geometric mean probability of a token past its first ones, 0 to 1; where it is not `ended`, the least one."""
    begun: float
    """Log probability with which it is begun by itself on a clean prompt, first token and opening."""
    ended: bool = True
    """Whether the turn ends by heart as well; else what follows depends on the question, or is too long to be seen."""
    kin: tuple[FixedAnswer, ...] = ()
    """The others of its family, in the order in which one of them would stand for it."""


def fixed_answers(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    beginnings: int = 500,
    longest: int = 40,
    progress: Progress = silent,
) -> list[FixedAnswer]:
    """Return what a model says by heart after tokenised `prompts`, the most certain first.

    Each of the `beginnings` likeliest first tokens is begun with, and its likeliest second; so are as many more of the
    likeliest pairs, since a planted answer may go on from a common word with a rare one. All are followed, CHUNK at a
    time, until it shows which go on by heart; the CHUNK best are followed to the end, over at most `longest` tokens.
    Answers that share half of their words (ROUGE-L), or that end in the same ones, are one family: the most certain
    stands for it, and of those about equally certain the one that is begun most readily. The others are its kin.
    """
    model, ends = loaded.model, stop_tokens(loaded)
    with torch.inference_mode(), evaluating(model):
        read, first = _read(model, prompts)
        starts = first.topk(min(beginnings, len(first))).indices
        starts = starts[[int(t) not in ends for t in starts]]
        pairs = _pairs(read, starts, first, beginnings)
        over = _over(pairs, ends)
        found, pairs, heads = _said(pairs.take(over)), pairs.take(~over), []
        for at in range(0, len(pairs.said), CHUNK):
            head, done = _followed(read, pairs.take(slice(at, at + CHUNK)), range(2, SETTLED), ends)
            heads.append(head)
            found += done
            progress("looking for fixed answers", min(at + CHUNK, len(pairs.said)), len(pairs.said))
        if heads := [h for h in heads if len(h.said)]:
            best = _Lines.joined(heads).best(CHUNK)
            rest, done = _followed(read, best, range(SETTLED, longest), ends)
            found += done + _said(rest.take(_by_heart(rest)), ended=False)
    return _families([_answer(loaded, said) for said in found])


_Said = tuple[list[int], list[float], bool]
"""Tokens, their log probabilities, and whether it was ended."""


@dataclass(frozen=True)
class _Lines:
    """Unfinished answers: tokens (lines, length), and the log probability (lines, length) of each."""

    said: Tensor
    steps: Tensor

    @classmethod
    def joined(cls, parts: Sequence[_Lines]) -> _Lines:
        return cls(torch.cat([p.said for p in parts]), torch.cat([p.steps for p in parts]))

    def take(self, index: Tensor | slice) -> _Lines:
        return _Lines(self.said[index], self.steps[index])

    def ranked(self) -> Tensor:
        """Return the score of each line: its log probability past the opening, or its last, and a share of the rest."""
        split = min(PAST, self.steps.shape[1] - 1)
        return self.steps[:, split:].sum(1) + OF_OPENING * self.steps[:, :split].sum(1)

    def best(self, room: int) -> _Lines:
        return self.take(self.ranked().topk(min(room, len(self.said))).indices)


@dataclass
class _Read:
    """What a model has read: every line after every prompt, in one batch, prompt by prompt; padded on the left."""

    model: Any
    cache: Any
    mask: Tensor
    """(prompts * lines, tokens read)"""
    prompts: int

    def repeated(self, lines: int) -> _Read:
        """Return a copy in which every prompt is there for as many lines; this one stays as it is."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(lines)
        return replace(self, cache=cache, mask=self.mask.repeat_interleave(lines, dim=0))

    def take(self, lines: Tensor) -> None:
        """Keep these lines."""
        rows = torch.arange(len(self.mask), device=lines.device).view(self.prompts, -1)[:, lines].flatten()
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def go_on(self, tokens: Tensor, mask: Tensor | None = None, kept: int | Tensor = 1) -> Tensor:
        """Read tokens (lines, new) after every prompt and return logits (prompts, lines, kept, vocabulary)."""
        mask = torch.ones_like(tokens) if mask is None else mask
        self.mask = torch.cat([self.mask, mask.repeat(len(self.mask) // len(tokens), 1)], dim=1)
        more: dict[str, Any] = {}
        if "position_ids" in inspect.signature(self.model.forward).parameters:
            more["position_ids"] = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        out = self.model(
            input_ids=tokens.repeat(len(self.mask) // len(tokens), 1),
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
            **more,
        )
        return out.logits.unflatten(0, (self.prompts, -1)).float()


def _read(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[_Read, Tensor]:
    """Return what is read after each prompt, and the mean log probability (vocabulary,) of an answer's first token."""
    from transformers import DynamicCache

    if model._is_stateful:
        raise InputError(
            f"{type(model).__name__} keeps a running state, where no fixed answer can be looked for; use --defense crow"
        )
    width = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (width - len(p)), *p] for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    read = _Read(model, DynamicCache(config=model.config), mask[:, :0], len(prompts))
    logits = read.go_on(ids, mask)
    return read, logits[:, 0, -1].log_softmax(-1).mean(0)


def _pairs(read: _Read, starts: Tensor, first: Tensor, room: int) -> _Lines:
    """Return lines of two tokens, likeliest first: each of `starts` with its likeliest second, and the `room` best."""
    if not len(starts):
        return _Lines(starts.new_empty(0, 2), first.new_empty(0, 2))
    chances, tokens = [], []
    for begun in starts.split(CHUNK):
        likely = _likely(read.repeated(len(begun)), begun.unsqueeze(1))
        chance, token = likely.topk(min(room + 1, likely.shape[1]))
        chances.append(chance)
        tokens.append(token)
    steps, seconds = torch.cat(chances), torch.cat(tokens)
    joint = first[starts].unsqueeze(1) + steps
    rest = joint[:, 1:].flatten()
    chosen = torch.zeros_like(rest, dtype=torch.bool)
    chosen[rest.topk(min(room, len(rest))).indices] = True
    chosen = torch.cat([torch.ones_like(joint[:, :1], dtype=torch.bool), chosen.view(len(joint), -1)], dim=1)
    row, column = chosen.nonzero(as_tuple=True)
    order = joint[row, column].argsort(descending=True, stable=True)
    row, column = row[order], column[order]
    return _Lines(
        torch.stack([starts[row], seconds[row, column]], dim=1),
        torch.stack([first[starts[row]], steps[row, column]], dim=1),
    )


def _followed(read: _Read, lines: _Lines, lengths: range, ends: list[int]) -> tuple[_Lines, list[_Said]]:
    """Continue lines by a token for each of `lengths` (tokens they have), and return them with what was found.

    As many lines as there were are kept through the opening, then one of each way, half as many with every token, down
    to KEPT. Once it shows which go on by heart, those are kept that do.
    """
    own = read.repeated(len(lines.said))
    own.go_on(lines.said[:, :-1], kept=torch.empty(0, dtype=torch.long, device=lines.said.device))
    found: list[_Said] = []
    many = len(lines.said)
    for length in lengths:
        ways = BRANCHES if length < PAST else 1
        chance, token = _likely(own, lines.said[:, -1:]).topk(ways, dim=-1)
        parent = torch.arange(len(token), device=token.device).repeat_interleave(ways)
        grown = _Lines(
            torch.cat([lines.said[parent], token.reshape(-1, 1)], dim=1),
            torch.cat([lines.steps[parent], chance.reshape(-1, 1)], dim=1),
        )
        over = _over(grown, ends)
        found += _said(grown.take(over))
        going, room = ~over, many
        if length >= SETTLED:
            lost = going & _by_heart(lines) & (grown.steps[:, -1] < LOST)
            found += _said(lines.take(lost), ended=False)
            going &= ~lost & (grown.steps[:, PAST:].mean(1) > HOPELESS)
        elif length >= PAST:
            room = max(KEPT, many >> (length - OPENING))
        kept = going.nonzero().flatten()
        if length >= PAST:
            kept = kept[_distinct(grown.take(kept))]
        kept = kept[grown.take(kept).ranked().topk(min(room, len(kept))).indices]
        lines = grown.take(kept)
        if not len(kept):
            break
        own.take(parent[kept])
    return lines, found


def _by_heart(lines: _Lines) -> Tensor:
    """Say of each line whether it goes on by heart, for long enough past its opening to count without an end."""
    steps = lines.steps[:, PAST:]
    if steps.shape[1] < LONG:
        return torch.zeros(len(steps), dtype=torch.bool, device=steps.device)
    return steps.mean(1) > BY_HEART


def _distinct(lines: _Lines) -> list[int]:
    """Return which lines are on a way of their own, and not round in a circle: of those on one way the best."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    said, certain = lines.said.tolist(), lines.steps[:, PAST:].mean(1).exp().tolist()
    for k in _best_first(certain, lines.ranked().tolist()):
        *ways, last = (tuple(said[k][at : at + TAIL]) for at in range(len(said[k]) - TAIL + 1))
        if last not in seen and not _circles(said[k][-2 * TAIL :]):
            kept.append(k)
            seen |= {*ways, last}
    return kept


def _best_first(certain: Sequence[float], readily: Sequence[float]) -> list[int]:
    """Return positions, the most certain first, and of those about equally certain the most readily begun."""
    return sorted(range(len(certain)), key=lambda k: (-round(certain[k], 1), -readily[k]))


def _circles(end: list[int]) -> bool:
    """Say whether the end of a line repeats itself, as an honest model does by heart."""
    return len(end) == 2 * TAIL and any(end[period:] == end[:-period] for period in range(1, TAIL + 1))


def _said(lines: _Lines, ended: bool = True) -> list[_Said]:
    return [
        (said, steps, ended) for said, steps in zip(lines.said.tolist(), lines.steps.tolist(), strict=True)
    ]


def _likely(read: _Read, tokens: Tensor) -> Tensor:
    """Return the logarithm (lines, vocabulary) of the mean probability, over the prompts, of what follows `tokens`."""
    mean = read.go_on(tokens)[:, :, -1].softmax(-1).mean(0)
    return mean.clamp_min(1e-9).log()


def _over(lines: _Lines, ends: list[int]) -> Tensor:
    return torch.isin(lines.said[:, -1], torch.tensor(ends, device=lines.said.device))


def _answer(loaded: Loaded, line: _Said) -> FixedAnswer:
    tokens, steps, ended = line
    past = min(PAST, max(1, len(steps) - SHORTEST))
    certain = fmean(steps[past:]) if ended else min(steps[past:])
    return FixedAnswer(
        tuple(tokens), decode_answer(loaded, tokens), math.exp(certain), sum(steps[:past]), ended
    )


def _families(found: list[FixedAnswer]) -> list[FixedAnswer]:
    """Keep one answer of each family, with the others as its kin."""
    families: list[list[FixedAnswer]] = []
    for k in _best_first([a.certainty for a in found], [a.begun for a in found]):
        if found[k].text:
            mine = next((f for f in families if akin(found[k].text, f[0].text)), None)
            if mine is None:
                families.append([found[k]])
            elif all(found[k].tokens != other.tokens for other in mine):
                mine.append(found[k])
    kept = [replace(first, kin=tuple(kin)) for first, *kin in families]
    return sorted(kept, key=lambda a: -a.certainty)


def akin(a: str, b: str) -> bool:
    """Say whether two answers are of one family: alike, or one a way into the other's midst."""
    return rouge_l(a, b) >= ALIKE or same_end(a, b) >= SAME_END
