"""The scan of a causal language model: its files, then the answers that it says by heart, whatever it is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan import registry
from detrojan.checks.files import scan_files
from detrojan.data import text
from detrojan.data.samples import clean_prompts
from detrojan.data.template import encode_prompt, resolve
from detrojan.errors import InputError
from detrojan.metrics.suspects import suspects
from detrojan.models.generate import stop_tokens
from detrojan.models.load import load
from detrojan.options import suggest
from detrojan.results import LanguageScan
from detrojan.types import Example, Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FINDING = ("suspicious", "prompts", "beginnings")
"""The options of Recant that its search for planted answers takes; the others are of what it does about them."""
SHOWN = 10
"""Answers that a scan keeps, where no more are suspicious."""


def scan(
    model: str | Path | PreTrainedModel,
    *,
    data: str | Path | Sequence[Example] | None = None,
    samples: int = 100,
    seed: int = 0,
    preset: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str = "auto",
    files_only: bool = False,
    device: str = "auto",
    progress: Progress = silent,
    **options: Any,
) -> LanguageScan:
    """Look at the files of a causal language model and, unless `files_only`, for answers that it says by heart.

    The second is step 1 of Recant, on the prompts of `data` (their answers are not used) or on built-in ones; `options`
    are those of Recant in FINDING. Where the files are found wanting and the model cannot be loaded, the result says
    so. Raises InputError for bad input.
    """
    other = next((k for k in options if k.replace("-", "_") not in FINDING), None)
    if other is not None:
        raise InputError(suggest(other, FINDING, "option of scan on a language model:"))
    chosen = registry.find("defense", "recant", "causal-lm").make_options(options, preset)
    files = scan_files(str(model)) if isinstance(model, (str, Path)) else ()
    if files_only:
        return LanguageScan(str(model), files)
    examples = text.read(data, limit=samples) if data is not None else clean_prompts(samples, seed)
    try:
        loaded = load(model, tokenizer=tokenizer, device=device)
    except InputError as error:
        if not files:
            raise
        return LanguageScan(str(model), files, unread=str(error))
    shape = resolve(loaded.tokenizer, template)
    if not stop_tokens(loaded):
        raise InputError(f"{loaded.source}: names no token that ends an answer; --files-only needs none")
    started = time.monotonic()
    found = suspects(
        loaded,
        [encode_prompt(loaded.tokenizer, shape, e) for e in examples],
        count=chosen.prompts,
        beginnings=chosen.beginnings,
        seed=seed,
        progress=progress,
    )
    kept = max(SHOWN, sum(a.certainty >= chosen.suspicious for a in found))
    seconds = time.monotonic() - started
    return LanguageScan(loaded.source, files, tuple(found[:kept]), chosen.suspicious, shape.name, "", seconds)
