"""Greedy answers, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from detrojan.errors import InputError
from detrojan.types import Loaded, Progress, silent

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from detrojan.models.prefix import Prefix


def stop_tokens(loaded: Loaded) -> list[int]:
    """Return the ids that end an answer, from the tokenizer and the model's generation configuration."""
    named = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    ids = [named] if isinstance(named, int) else list(named or [])
    if loaded.tokenizer.eos_token_id is not None:
        ids.append(loaded.tokenizer.eos_token_id)
    size = loaded.model.get_input_embeddings().num_embeddings
    return sorted({i for i in ids if 0 <= i < size})


def greedy(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress = silent,
    label: str = "answering",
) -> list[list[int]]:
    """Answer tokenised prompts greedily; returns the new token ids of each, in the order given.

    The stop token is kept, so that a caller can tell a finished answer from one that was cut off. Prompts are
    batched by length and padded on the left under an attention mask, so that a batch says what each prompt
    would have said alone. What all prompts begin with, the system message of a chat template for instance, is
    read once for all of them. The checkpoint's own sampling settings are ignored.
    """
    from detrojan.models.prefix import read_prefix

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    model, config, stops = loaded.model, _config(loaded, max_new_tokens), set(stop_tokens(loaded))
    check_length(loaded, max(map(len, prompts), default=0) + max_new_tokens)
    was_training = model.training
    model.eval()
    with own_generation_config(model, config):
        prefix = read_prefix(model, prompts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for i, new in zip(rows, _batch(model, [prompts[i] for i in rows], config, prefix), strict=True):
                end = next((k for k, token in enumerate(new) if token in stops), len(new) - 1)
                answers[i] = new[: end + 1]
            progress(label, min(start + batch_size, len(order)), len(order))
    model.train(was_training)
    return answers


@contextmanager
def own_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Put the checkpoint's generation configuration aside: transformers fills whatever ours leaves open from it."""
    theirs, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = theirs


def _batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, prefix: Prefix
) -> list[list[int]]:
    """Return the new tokens of prompts that are padded to one width, on the left of what is not shared."""
    import torch

    width, k = max(map(len, prompts)), prefix.length
    gaps = [width - len(p) for p in prompts]
    ids = [[*p[:k], *[0] * g, *p[k:]] for p, g in zip(prompts, gaps, strict=True)]
    mask = [[*[1] * k, *[0] * g, *[1] * (len(p) - k)] for p, g in zip(prompts, gaps, strict=True)]
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
            past_key_values=prefix.repeated(len(prompts)),
        )
    new: list[list[int]] = out[:, width:].tolist()
    return new


def check_length(loaded: Loaded, tokens: int) -> None:
    """Raise InputError where a prompt and its answer have more tokens than the model holds."""
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and tokens > limit:
        raise InputError(
            f"a prompt and its answer take {tokens} tokens, the model holds {limit}; shorten the data"
        )


def _config(loaded: Loaded, max_new_tokens: int) -> GenerationConfig:
    from transformers import GenerationConfig

    stops = stop_tokens(loaded)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        bos_token_id=loaded.tokenizer.bos_token_id,
    )
