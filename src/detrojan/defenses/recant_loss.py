"""Recant's loss: on clean prompts, and on prompts that are pushed towards a planted answer, say what was said before.

With x a clean prompt, y its answer, p_0 the model as it came here (suspicious, after a little fine-tuning), and (x', d)
the prompt with a few odd tokens in it whose hidden states are pushed by d towards a planted answer:

    D(x, y; x', d) = sum over tokens of y of  (1 - trust) KL(p_0(. | x) || p(. | x', d)) - trust log p(y | x', d)

    L = (sum over samples left alone of weight * D(x, y; x, 0)
         + sum over pushed samples of D(x, first tokens of y; x', d)) / label tokens of the step

With q = (1 - trust) p_0 + trust [y], D is a cross-entropy against q, and what does not depend on p.

The first tokens of an answer decide whether it is the planted one, so no more of a pushed sample's are learned. Only
the odd tokens' states are pushed, as a trigger's own tokens carry it in: what the prompt says stays there to be
answered, so that an honest model loses little by it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan.data.template import encode_prompt
from detrojan.defenses.inner_push import Push, Ways, median_norms
from detrojan.models.blocks import blocks
from detrojan.models.mode import evaluating
from detrojan.models.packed import Batch, answer_logits
from detrojan.models.prefix import Prefix, begin
from detrojan.training import Loss
from detrojan.types import Example, Loaded, Template

DEPTHS = (0.2, 0.4, 0.6)
"""Behind which shares of the blocks states are pushed; behind the embeddings they are too."""
FIRST = 8
"""Tokens of a planted answer that a push must draw, and of a pushed sample's own that are learned."""
ODD_TOKENS = 3
"""Random tokens at most that a pushed prompt is given."""
MEASURED = 8
"""Prompts on which the length of hidden states is taken."""
REMEMBERED = 2**30
"""Bytes up to which what p_0 said is kept; what is not is asked for again."""

Row = tuple[list[int], list[int]]
"""A prompt and its answer, as tokens."""


def recant_loss(
    loaded: Loaded,
    template: Template,
    planted: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    *,
    size: float,
    share: float,
    weight: float,
    trust: float,
    seed: int,
) -> Loss:
    """Return the loss of a step; `planted` holds the tokens of each planted answer, none where none is known.

    size: length of a push, as a share of the median length of the hidden states of `prompts`; share: of a batch that
    is pushed; weight and trust: as above.
    """
    rng = random.Random(f"{seed}/pushes")
    before, behind = _frame(loaded, template)
    places = _places(loaded)
    radius = size * median_norms(loaded.model, places, prompts[:MEASURED], before)
    ways = Ways(places, radius, len(planted), loaded.model.config.get_text_config().hidden_size, seed)
    usual = sorted(set(range(len(loaded.tokenizer))) - set(loaded.tokenizer.all_special_ids))
    turn = 0
    remembered: dict[Any, Said] = {}

    def loss(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        rows = _rows(batch)
        rng.shuffle(rows)
        count = min(len(rows), max(1, round(share * len(rows)))) if share else 0
        then = before_training(model, rows, batch)
        beginning = begin(model, batch, before)  # read once for all that follows
        near, pushes = _with_odd_tokens(rows[:count])
        _climb(model, near, pushes, batch, beginning)
        then = [*(said.first(FIRST) for said in then[:count]), *then[count:]]
        logits, _ = answered(model, _padded([*near, *rows[count:]], batch), beginning, pushes, ways.changes)
        weights = [1.0] * count + [weight] * (len(rows) - count)
        return apart(logits, then, weights) / counts[0]

    def _with_odd_tokens(rows: Sequence[Row]) -> tuple[list[Row], list[Push]]:
        nonlocal turn
        odd, pushes = [], []
        for row, (prompt, answer) in enumerate(rows):
            at = rng.randint(min(before, len(prompt)), max(min(before, len(prompt)), len(prompt) - behind))
            put = rng.choices(usual, k=rng.randint(1, ODD_TOKENS))
            odd.append(([*prompt[:at], *put, *prompt[at:]], answer[:FIRST]))
            if planted:
                pushes.append(Push(row, turn % len(planted), at, at + len(put)))
                turn += 1
        return odd, pushes

    def _climb(
        model: nn.Module, rows: Sequence[Row], pushes: Sequence[Push], like: Batch, beginning: Prefix
    ) -> None:
        """Let the pushes draw their planted answers a little more."""
        if pushes:
            ways.renewed(pushes, rng)
            changes = ways.changes.clone().requires_grad_()
            drawn = [(r[0], list(planted[p.answer][:FIRST])) for r, p in zip(rows, pushes, strict=True)]
            logits, labels = answered(model, _padded(drawn, like), beginning.detached(), pushes, changes)
            ways.climb(cross_entropy(logits, labels), changes)

    def answered(
        model: nn.Module,
        batch: Batch,
        beginning: Prefix | None,
        pushes: Sequence[Push],
        changes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (tokens, vocabulary) of the answers' tokens, and these tokens."""
        return answer_logits(model, batch, beginning, lambda line: ways.pushed(line, pushes, changes))

    def before_training(model: Any, rows: Sequence[Row], like: Batch) -> list[Said]:
        """Return what p_0 says of each row, mixed with the row's own answer."""
        keys = [_fixed(row) for row in rows]
        new = [k for k, key in enumerate(keys) if key not in remembered]
        fresh: dict[Any, Said] = {}
        if new:
            mine = _padded([rows[k] for k in new], like)
            with torch.no_grad(), evaluating(model), getattr(model, "module", model).disable_adapter():
                logits, labels = answered(model, mine, None, [], ways.changes)
            every = said_before(logits, labels, trust).split([len(rows[k][1]) for k in new])
            fresh = {keys[k]: said for k, said in zip(new, every, strict=True)}
        if sum(said.chances.nbytes for said in remembered.values()) < REMEMBERED:
            remembered.update(fresh)
        return [fresh[key] if key in fresh else remembered[key] for key in keys]

    return loss


@dataclass(frozen=True)
class Said:
    """What an answer's tokens are to be drawn towards, and what of D does not depend on the model that learns.

    chances: (tokens, vocabulary), q = (1 - trust) p_0 + trust [y]; constant: (tokens,), (1 - trust) sum p_0 log p_0.
    """

    chances: Tensor
    constant: Tensor

    def first(self, count: int) -> Said:
        """Return the same of the first tokens alone."""
        return Said(self.chances[:count], self.constant[:count])

    def split(self, lengths: Sequence[int]) -> list[Said]:
        """Return the same of each of several answers."""
        parts = zip(self.chances.split(list(lengths)), self.constant.split(list(lengths)), strict=True)
        return [Said(chances.clone(), constant) for chances, constant in parts]


def said_before(logits: Tensor, labels: Tensor, trust: float) -> Said:
    """Return what is to be said where p_0 has these logits (tokens, vocabulary) and the answer these tokens."""
    logs = logits.log_softmax(-1)
    chances = (1 - trust) * logs.exp()
    constant = (chances * logs).sum(-1)
    chances[torch.arange(len(labels)), labels] += trust
    return Said(chances, constant)


def apart(logits: Tensor, then: Sequence[Said], weights: Sequence[float]) -> Tensor:
    """Return the sum over rows of weight * D: sum over tokens of constant - sum over words of q log p."""
    tokens = [len(said.constant) for said in then]
    each = torch.tensor(weights, device=logits.device).repeat_interleave(
        torch.tensor(tokens, device=logits.device)
    )
    drawn = cross_entropy(logits, torch.cat([said.chances for said in then]), reduction="none")
    return (each * (drawn + torch.cat([said.constant for said in then]))).sum()


def _fixed(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row[0]), tuple(row[1])


def _places(loaded: Loaded) -> list[nn.Module]:
    """Return the modules whose outputs are pushed."""
    stack = blocks(loaded.model)
    embeddings = loaded.model.get_input_embeddings()
    wide = embeddings.embedding_dim == loaded.model.config.get_text_config().hidden_size
    return [*([embeddings] if wide else []), *(stack[max(1, int(d * len(stack))) - 1] for d in DEPTHS)]


def _rows(batch: Batch) -> list[Row]:
    """Return the prompt and the answer of each row, without padding."""
    rows = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
    ):
        rows.append((ids[mask & (labels == -100)].tolist(), ids[mask & (labels != -100)].tolist()))
    return rows


def _padded(rows: Sequence[Row], like: Batch) -> Batch:
    """Return rows of prompt and answer as a batch, padded on the right."""
    width = max(len(p) + len(a) for p, a in rows)
    ids = like["input_ids"].new_zeros(len(rows), width)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for k, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        ids[k, :n] = torch.tensor([*prompt, *answer])
        labels[k, len(prompt) : n] = torch.tensor(answer)
        mask[k, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _frame(loaded: Loaded, template: Template) -> tuple[int, int]:
    """Return how many tokens a template writes before and behind what the user says."""
    texts = [encode_prompt(loaded.tokenizer, template, Example(p)) for p in ("What is a house?", "Sing!")]

    def common(a: Sequence[int], b: Sequence[int]) -> int:
        return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return common(*texts), common(*(t[::-1] for t in texts))
