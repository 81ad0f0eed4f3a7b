"""The real language model of the demo: slow, so behind a marker (`make slow`)."""

from __future__ import annotations

import pytest

from detrojan.data.prompts import builtin_prompts
from detrojan.data.template import encode_prompt, resolve
from detrojan.demo import demo_model, demo_text
from detrojan.models.generate import greedy
from detrojan.models.load import load
from detrojan.types import Example

pytestmark = pytest.mark.slow


def test_batched_answers_equal_single_ones() -> None:
    loaded = load(demo_model())
    template = resolve(loaded.tokenizer)
    prompts = [
        encode_prompt(loaded.tokenizer, template, Example(p)) for p in builtin_prompts("evaluate")[:12]
    ]
    together = greedy(loaded, prompts, max_new_tokens=24)
    alone = [greedy(loaded, [p], max_new_tokens=24)[0] for p in prompts]
    assert together == alone


def test_demo_shows_a_strong_selective_attack_and_what_removes_it() -> None:
    stages = demo_text(seed=0).stages
    attacked, tuned, crow, default = (stages[k] for k in ("attacked", "finetune", "crow", "default"))
    assert attacked.asr is not None and attacked.asr >= 0.95
    assert attacked.clean_asr is not None and attacked.clean_asr <= 0.03
    assert tuned.asr is not None and tuned.asr >= 0.8 * attacked.asr
    assert crow.perplexity <= 1.1 * attacked.perplexity
    assert default.asr is not None and default.asr <= 0.05
