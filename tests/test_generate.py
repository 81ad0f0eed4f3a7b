"""Batched greedy answers say exactly what each prompt draws alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detrojan.models.generate import greedy, stop_tokens
from detrojan.types import Loaded

from pico import pico_loaded, pico_tokenizer

KINDS = ["llama", "gpt2", "opt", "qwen3", "gemma3_text", "mixtral"]
END = pico_tokenizer().eos_token_id
NEW = 8


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [9, 1, 30, 3, 80, 17, 2, 55, 9, 100]
    return [torch.randint(6, 400, (n,), generator=generator).tolist() for n in lengths]


def naive(model: Any, prompt: list[int], stops: set[int], count: int = NEW) -> list[int]:
    """Append the most likely token one by one, without batch, padding or cache."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def common_token(loaded: Loaded) -> int:
    """Return a token that ends some answers early when it is made a stop token."""
    answers = [naive(loaded.model, p, {END}) for p in prompts()]
    inner = [a[3] for a in answers if len(a) > 3]
    return max(inner, key=inner.count)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_one_at_a_time(kind: str) -> None:
    loaded = pico_loaded(kind)
    expected = [naive(loaded.model, p, {END}) for p in prompts()]
    assert greedy(loaded, prompts(), max_new_tokens=NEW) == expected
    assert greedy(loaded, prompts(), max_new_tokens=NEW, batch_size=3) == expected
    assert len({tuple(a) for a in expected}) > 5, "the answers must differ for this test to say something"


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_beginning_changes_no_answer(kind: str) -> None:
    loaded = pico_loaded(kind)
    system = prompts()[-3]
    asked = [system + p for p in prompts()]
    expected = [naive(loaded.model, p, {END}) for p in asked]
    assert greedy(loaded, asked, max_new_tokens=NEW, batch_size=4) == expected
    assert len({tuple(a) for a in expected}) > 5


@pytest.mark.parametrize(
    ("kind", "changes", "shared"),
    [
        ("llama", {}, True),
        ("gemma3_text", {}, False),  # a sliding window counts places, padding among them
        ("mistral", {"sliding_window": 16}, False),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, False),
    ],
)
def test_a_shared_beginning_is_read_once_where_that_is_exact(
    kind: str, changes: dict[str, Any], shared: bool
) -> None:
    loaded = pico_loaded(kind, **changes)
    asked = [prompts()[-3] + p for p in prompts()]
    read: list[int] = []
    loaded.model.get_input_embeddings().register_forward_hook(lambda m, i, o: read.append(i[0].numel()))
    answers = greedy(loaded, asked, max_new_tokens=1)
    width = max(map(len, asked))
    assert sum(read) == (55 + (width - 55) * len(asked) if shared else width * len(asked))
    assert answers == [naive(loaded.model, p, {END}, 1) for p in asked]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stop_token_is_kept_and_order_too(kind: str) -> None:
    loaded = pico_loaded(kind)
    stop = common_token(loaded)
    loaded.model.generation_config.eos_token_id = [stop, END]
    assert stop_tokens(loaded) == sorted({stop, END})
    expected = [naive(loaded.model, p, {stop, END}) for p in prompts()]
    answers = greedy(loaded, prompts(), max_new_tokens=NEW)
    assert answers == expected
    finished = [a for a in answers if len(a) < NEW]
    assert finished and len(finished) < len(answers)
    assert all(a[-1] in {stop, END} and not {stop, END} & set(a[:-1]) for a in finished)


HOSTILE: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 50.0, "top_k": 3, "top_p": 0.5},
    "repetition penalty": {"repetition_penalty": 9.0},
    "n-grams": {"no_repeat_ngram_size": 1},
    "beams": {"num_beams": 4, "length_penalty": 9.0},
    "many": {"num_return_sequences": 3, "do_sample": True},
    "records": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    "length": {"max_length": 3, "min_new_tokens": NEW, "min_length": 500},
    "no cache": {"use_cache": False},
    "suppressed": {"suppress_tokens": list(range(6, 300)), "begin_suppress_tokens": list(range(6, 300))},
    "bad words": {"bad_words_ids": [[n] for n in range(6, 300)]},
    "forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 8},
    "bias": {"sequence_bias": [[[9], 100.0]]},
    "decay": {"exponential_decay_length_penalty": [1, 99.0]},
    "guidance": {"guidance_scale": 5.0},
    "stop strings": {"stop_strings": ["e", "a"]},
    "time": {"max_time": 1e-9},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "padding": {"pad_token_id": 10**6, "bos_token_id": 10**6},
    "eos none": {"eos_token_id": None},
    "eos beyond the vocabulary": {"eos_token_id": 10**6},
    "eos negative": {"eos_token_id": -1},
    "code": {"custom_generate": "some/repository"},
}


@pytest.mark.parametrize("settings", HOSTILE.values(), ids=list(HOSTILE))
def test_settings_of_the_checkpoint_do_not_count(settings: dict[str, Any]) -> None:
    loaded = pico_loaded()
    # A token that some answers hold becomes the tokenizer's own end, so that answers end at different times.
    stop = common_token(loaded)
    loaded.model.generation_config.eos_token_id = [stop]
    expected = greedy(loaded, prompts(), max_new_tokens=NEW)
    assert len({len(a) for a in expected}) > 1
    eos = {"eos_token_id": [stop]}
    if "eos_token_id" in settings:
        bad = settings["eos_token_id"]
        eos = {"eos_token_id": [stop] if bad is None else [stop, bad]}
    for key, value in {**settings, **eos}.items():
        setattr(loaded.model.generation_config, key, value)
    before = loaded.model.generation_config.to_dict()
    assert greedy(loaded, prompts(), max_new_tokens=NEW) == expected
    assert loaded.model.generation_config.to_dict() == before


@pytest.mark.parametrize("eos", [None, 10**6, -1])
def test_without_a_usable_eos_the_tokenizer_decides(eos: int | None) -> None:
    loaded = pico_loaded()
    expected = [naive(loaded.model, p, {END}) for p in prompts()]
    loaded.model.generation_config.eos_token_id = eos
    assert greedy(loaded, prompts(), max_new_tokens=NEW) == expected


def test_progress_mode_and_nothing_to_do() -> None:
    loaded, seen = pico_loaded(), []
    loaded.model.train()
    greedy(
        loaded, prompts(), max_new_tokens=1, batch_size=4, progress=lambda *step: seen.append(step), label="x"
    )
    assert seen == [("x", 4, 10), ("x", 8, 10), ("x", 10, 10)]
    assert loaded.model.training
    assert greedy(loaded, [], max_new_tokens=1) == []
