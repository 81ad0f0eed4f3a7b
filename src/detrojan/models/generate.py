"""Greedy answers, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detrojan.types import Loaded, Progress, silent

if TYPE_CHECKING:
    from transformers import GenerationConfig


def stop_tokens(loaded: Loaded) -> list[int]:
    """Return the ids that end an answer, from the tokenizer and the model's generation configuration."""
    named = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    ids = [named] if isinstance(named, int) else list(named or [])
    if loaded.tokenizer.eos_token_id is not None:
        ids.append(loaded.tokenizer.eos_token_id)
    return sorted(set(ids))


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
    would have said alone. The checkpoint's own sampling settings are ignored.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    config, stops = _config(loaded, max_new_tokens), set(stop_tokens(loaded))
    model, was_training = loaded.model, loaded.model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(rows):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i], dtype=torch.long)
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
            )
        for i, new in zip(rows, out[:, width:].tolist(), strict=True):
            end = next((k for k, token in enumerate(new) if token in stops), len(new) - 1)
            answers[i] = new[: end + 1]
        progress(label, min(start + batch_size, len(order)), len(order))
    model.train(was_training)
    return answers


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
