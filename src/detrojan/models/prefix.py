"""What all texts of a batch begin with, a chat template's system message for instance, is computed once.

Attention is causal: the state of a beginning does not depend on what follows it, so texts may share it. Gradients
flow through it as they would through copies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

MIN_SHARED = 8
"""Tokens that texts must have in common before reading them only once pays."""
CHANGING_ROPE = {"dynamic", "longrope"}
"""Rotary embeddings that turn the first tokens otherwise in a long text than in a short one."""


@dataclass(frozen=True)
class Prefix:
    """A number of first tokens and a model's state after them; no state when nothing is shared."""

    length: int = 0
    state: DynamicCache | None = None

    def repeated(self, rows: int) -> DynamicCache | None:
        """Return a state of its own for each of `rows` texts, for a model to go on from."""
        own = self._with(lambda states: states)
        if own is not None and rows > 1:
            own.batch_repeat_interleave(rows)
        return own

    def detached(self) -> Prefix:
        """Return the same without its gradients."""
        return Prefix(self.length, self._with(Tensor.detach))

    def _with(self, change: Callable[[Tensor], Tensor]) -> DynamicCache | None:
        """Return a state with changed keys and values, which grows by itself: tokens are put behind copies."""
        own = copy.copy(self.state)
        if own is not None:
            own.layers = [copy.copy(layer) for layer in own.layers]
            for layer in (one for one in own.layers if one.is_initialized):
                layer.keys, layer.values = change(layer.keys), change(layer.values)
        return own


def read_prefix(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Prefix:
    """Read the tokens that all texts begin with; each text keeps at least one token of its own."""
    columns = zip(*(t[:-1] for t in texts), strict=False)
    length = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    if length < MIN_SHARED or len(texts) < 2:
        return Prefix()
    state = _empty_state(model)
    if state is not None:
        ids = torch.tensor([list(texts[0][:length])], device=model.device)
        with torch.inference_mode():
            model(input_ids=ids, past_key_values=state, use_cache=True, logits_to_keep=1)
    return Prefix(length if state is not None else 0, state)


def begin(model: Any, batch: dict[str, Tensor], most: int | None = None) -> Prefix:
    """Read what all rows of a batch begin with, of `most` tokens at most, once; gradients flow through it.

    Nothing is shared on a GPU, where a pass more through all layers would cost more than it saves, nor where the first
    token of an answer would have to be predicted from it.
    """
    ids, kept = batch["input_ids"], (batch["labels"][:, 1:] != -100).any(dim=0).nonzero()
    if ids.device.type != "cpu" or not len(kept) or not in_one_piece(model):
        return Prefix()
    limit = int(kept.min())
    shared = _shared_columns(ids, limit if most is None else min(most, limit))
    state = _empty_state(model) if shared >= MIN_SHARED else None
    if state is None:
        return Prefix()
    nowhere = torch.empty(0, dtype=torch.long)
    model(input_ids=ids[:1, :shared], past_key_values=state, use_cache=True, logits_to_keep=nowhere)
    return Prefix(shared, state)


def _shared_columns(ids: Tensor, limit: int) -> int:
    """Count the first columns of (batch, tokens) in which all rows are equal, up to `limit`."""
    equal = (ids[:, :limit] == ids[:1, :limit]).all(dim=0)
    return int(equal.cumprod(dim=0).sum())


def in_one_piece(model: Any) -> bool:
    """Whether this is the model itself, not a wrapper that spreads it over processes, and it keeps all it computes."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    return isinstance(model, (PreTrainedModel, PeftModel)) and not model.is_activation_checkpointing


def attends_to_all(model: Any) -> bool:
    """Whether a model attends to all tokens before each, at positions that do not depend on how many come."""
    return _empty_state(model) is not None


def _empty_state(model: Any) -> DynamicCache | None:
    """Return a state to fill, or None when sharing would not be exact for this model.

    It is not for rotary embeddings that change with the length, for states that are no keys and values, and for
    sliding windows, which would count the padding between the beginning and the rest.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    settings = [
        rope,
        *(v for v in rope.values() if isinstance(v, dict)),
    ]  # some have one for each kind of layer
    if any(s.get("rope_type") in CHANGING_ROPE for s in settings) or model._is_stateful:
        return None
    if not model._supports_default_dynamic_cache():
        return None
    state = DynamicCache(config=model.config)
    return state if all(type(layer) is DynamicLayer for layer in state.layers) else None
