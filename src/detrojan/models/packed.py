"""Rows of a batch as a model is given them for what they cost least: no padding, and logits where labels are.

On a CPU time follows the number of tokens. There rows of different lengths are put one behind the other, as one row
whose tokens attend to those of their own row alone, with the position that they have in it; what all of a batch begin
with is read once (`models.prefix`). On a GPU, where little is saved, and in models of which that would not be exact,
rows stay beside one another, padded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detrojan.models.prefix import Prefix, attends_to_all, begin, in_one_piece

Batch = dict[str, Tensor]
"""`input_ids`, `attention_mask`, `labels` (rows, tokens), padded on the right; -100 where no label is learned."""

LONGEST = 192
"""Tokens in one line, where more than one row is in it: what they attend over grows with their square."""
WORTH = 0.8
"""Share of the tokens that are no padding, from which on rows are run quicker beside one another."""
BY_MASK = {"create_causal_mask", "ALL_ATTENTION_FUNCTIONS"}
"""What a model's file imports where the mask alone decides which tokens attend to which."""


@dataclass(frozen=True)
class Line:
    """What a model is given in one call.

    inputs: keyword arguments of the model, logits where a label is predicted; real: (rows, tokens), 1 where a token is
    no padding; labels: (rows, logits), the token that follows, -100 where none is learned; places: of each row of the
    batch that is in it, the row of `inputs` and where in that the row's own first token is or would be.
    """

    inputs: dict[str, Any]
    real: Tensor
    labels: Tensor
    places: dict[int, tuple[int, int]]

    def answers(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (tokens, vocabulary) that predict the answers' tokens, in float32, and those tokens."""
        learned = self.labels != -100
        if learned.all():
            return logits.flatten(0, 1).float(), self.labels.flatten()
        return logits[learned].float(), self.labels[learned]


def answer_logits(
    model: Any,
    batch: Batch,
    beginning: Prefix | None = None,
    rest: Callable[[Line], AbstractContextManager[None]] = lambda line: nullcontext(),
) -> tuple[Tensor, Tensor]:
    """Return the logits (tokens, vocabulary) that predict the answers' tokens, row after row, and those tokens.

    `beginning` holds what all rows begin with, where that was read before. `rest(line)` is open while a line is run.
    """
    if beginning is None:
        beginning = begin(model, batch) if len(batch["input_ids"]) > 1 else Prefix()
    found = []
    for line in lines(model, batch, beginning):
        with rest(line):
            logits = model(**line.inputs).logits
        found.append(line.answers(logits))
    if len(found) == 1:
        return found[0]
    all_logits, all_labels = zip(*found, strict=True)
    return torch.cat(all_logits), torch.cat(all_labels)


def lines(model: Any, batch: Batch, beginning: Prefix | None = None) -> Iterator[Line]:
    """Give the rows of a batch, without what was read of them in `beginning`, as lines that a model is given."""
    beginning = beginning or Prefix()
    mask = batch["attention_mask"][:, beginning.length :]
    if mask.device.type == "cpu" and mask.sum() < WORTH * mask.numel() and _may_be_packed(model):
        for rows in _together(batch, beginning.length):
            yield _behind(model, batch, beginning, rows)
    else:
        yield _beside(batch, beginning)


def label_positions(labels: Tensor) -> Tensor:
    """Return the positions (kept,) whose logits predict a label of any row.

    As a tensor, not a count: a slice at the end of every row is not contiguous, and the product with the
    vocabulary, the largest of the model, would then be taken row by row.
    """
    return (labels[:, 1:] != -100).any(dim=0).nonzero().flatten()


def _beside(batch: Batch, beginning: Prefix) -> Line:
    """Return all rows beside one another, padded."""
    ids, mask, read = batch["input_ids"], batch["attention_mask"], beginning.length
    kept = label_positions(batch["labels"])
    inputs = {"input_ids": ids[:, read:], "attention_mask": mask, "logits_to_keep": kept - read}
    return Line(
        _after(beginning, inputs, len(ids)),
        mask[:, read:],
        batch["labels"][:, kept + 1],
        {row: (row, -read) for row in range(len(ids))},
    )


def _behind(model: Any, batch: Batch, beginning: Prefix, rows: list[int]) -> Line:
    """Return some rows one behind the other, as one."""
    read = beginning.length
    ends = batch["attention_mask"].sum(dim=1).tolist()
    positions = torch.cat([torch.arange(read, ends[row]) for row in rows])
    owner = torch.cat([torch.full((ends[row] - read,), row) for row in rows])
    ids, labels = batch["input_ids"][owner, positions], batch["labels"][owner, positions]
    learned = ((labels != -100) & (positions > 0)).nonzero().flatten()
    inputs = {
        "input_ids": ids.unsqueeze(0),
        "position_ids": positions.unsqueeze(0),
        "logits_to_keep": learned - 1,
    }
    if len(rows) == 1:
        inputs["attention_mask"] = torch.ones(1, read + len(ids), dtype=torch.long)
    else:
        own = (owner.unsqueeze(1) == owner) & (positions.unsqueeze(1) >= positions)
        allowed = torch.cat([own.new_ones(len(ids), read), own], dim=1)[None, None]
        inputs["attention_mask"] = _as_mask(model, allowed)
    starts = torch.tensor([0, *(ends[row] - read for row in rows)]).cumsum(0).tolist()
    return Line(
        _after(beginning, inputs, 1),
        torch.ones(1, len(ids), dtype=torch.long),
        labels[learned].unsqueeze(0),
        {row: (0, start - read) for row, start in zip(rows, starts, strict=False)},
    )


def _after(beginning: Prefix, inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    state = beginning.repeated(rows)
    return inputs if state is None else {**inputs, "past_key_values": state}


def _together(batch: Batch, read: int) -> Iterator[list[int]]:
    """Give rows in order, as many at a time as fit into a line, and one at least."""
    taken: list[int] = []
    room = LONGEST
    for row, length in enumerate((batch["attention_mask"].sum(dim=1) - read).tolist()):
        if taken and length > room:
            yield taken
            taken, room = [], LONGEST
        taken.append(row)
        room -= length
    yield taken


def _as_mask(model: Any, allowed: Tensor) -> Tensor:
    """Return a mask as a model's attention takes it: fused, where True attends; else what is added to the scores."""
    if model.config._attn_implementation == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, dtype=model.dtype).masked_fill(~allowed, torch.finfo(model.dtype).min)


def _may_be_packed(model: Any) -> bool:
    """Say whether rows may stand one behind the other: attention by the mask alone, and positions that are given."""
    if not in_one_piece(model) or not attends_to_all(model):
        return False
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    return (
        own.config._attn_implementation in {"sdpa", "eager"}
        and vars(sys.modules[type(own).__module__]).keys() >= BY_MASK
        and "position_ids" in inspect.signature(own.forward).parameters
    )
