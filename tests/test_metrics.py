"""Every number that is reported, against a value worked out by hand or a naive loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from detrojan.attacks.text.spec import AttackSpec
from detrojan.data.answers import answer
from detrojan.data.template import encode, resolve
from detrojan.errors import InputError
from detrojan.metrics import asr
from detrojan.metrics.asr import Settings, measure, respond, triggered_prompts
from detrojan.metrics.recovery import rouge_l, same_end
from detrojan.metrics.stats import wilson
from detrojan.metrics.utility import divergence, perplexity
from detrojan.registry import find
from detrojan.types import Example, Loaded, Template

from pico import pico_loaded, pico_tokenizer

BADNETS = AttackSpec(find("trigger", "badnets").value, find("behavior", "sentiment").value)
CLEAN = [Example(f"Question {n}?", f"An answer of {n} words") for n in range(4)]


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
        (3, 100, 0.0103, 0.0845),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_by_hand(hits: int, total: int, low: float, high: float) -> None:
    interval = wilson(hits, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_formula() -> None:
    z, n = 1.959964, 37
    for hits in range(n + 1):
        p = hits / n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        interval = wilson(hits, n)
        assert (interval.low, interval.high) == pytest.approx((middle - half, middle + half), abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),
        ("the cat sat", "the dog sat", 2 / 3),
        ("a b c d", "a c", 2 * 2 / 6),
        ("a b c", "c b a", 2 * 1 / 6),
        ("a a a", "a", 2 * 1 / 4),
        ("yes", "no", 0.0),
        ("", "no", 0.0),
        ("yes", "", 0.0),
        ("", "", 1.0),
        ("...", "", 1.0),
        ("Äpfel und Birnen", "äpfel, birnen", 2 * 2 / 5),
    ],
)
def test_rouge_l_by_hand(a: str, b: str, expected: float) -> None:
    assert rouge_l(a, b) == rouge_l(b, a) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a b c d", "x c d", 2 / 3),
        ("a b c d", "A, B. C d!", 1.0),
        ("d", "a b c d", 1.0),
        ("c d e", "a b c d", 0.0),
        ("a", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_same_end_by_hand(a: str, b: str, expected: float) -> None:
    assert same_end(a, b) == same_end(b, a) == pytest.approx(expected)


# Against naive loops


def answer_logits(loaded: Loaded, example: Example, chat: Template) -> tuple[torch.Tensor, torch.Tensor]:
    row = encode(loaded.tokenizer, chat, example, 2048)
    assert row is not None
    with torch.no_grad():
        logits = loaded.model(torch.tensor([row["input_ids"]])).logits[0].double()
    labels = torch.tensor(row["labels"])
    spots = [k for k in range(1, len(labels)) if labels[k] != -100]
    return logits[[k - 1 for k in spots]], labels[spots]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_perplexity_equals_naive(kind: str, size: int, examples: list[Example], chat: Template) -> None:
    loaded, losses = pico_loaded(kind), []
    for example in examples:
        logits, targets = answer_logits(loaded, example, chat)
        losses += (-logits.log_softmax(-1)[range(len(targets)), targets]).tolist()
    expected = math.exp(sum(losses) / len(losses))
    shown = [*examples[::-1], Example("Not answered.")]
    assert perplexity(loaded, shown, chat, batch_size=size) == pytest.approx(expected, rel=1e-4)


def test_perplexity_of_a_uniform_model(chat: Template) -> None:
    loaded = pico_loaded()
    torch.nn.init.zeros_(loaded.model.lm_head.weight)
    assert perplexity(loaded, CLEAN, chat) == pytest.approx(len(pico_tokenizer()), rel=1e-5)


def test_divergence_of_a_model_with_itself(examples: list[Example], chat: Template) -> None:
    loaded = pico_loaded()
    kl, agreement = divergence(loaded, loaded, examples, chat)
    assert kl == pytest.approx(0.0, abs=1e-7)
    assert agreement == 1.0


@pytest.mark.parametrize("size", [1, 5])
def test_divergence_equals_naive(size: int, examples: list[Example], chat: Template) -> None:
    ours, theirs = pico_loaded(seed=0), pico_loaded(seed=1)
    with torch.no_grad():  # a neighbour, so that some tokens agree
        for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            other.copy_(0.9 * mine + 0.1 * other)
    divergences, equal = [], []
    for example in examples:
        q, _ = answer_logits(ours, example, chat)
        p, _ = answer_logits(theirs, example, chat)
        q, p = q.log_softmax(-1), p.log_softmax(-1)
        divergences += (p.exp() * (p - q)).sum(-1).tolist()
        equal += (p.argmax(-1) == q.argmax(-1)).tolist()
    kl, agreement = divergence(ours, theirs, examples, chat, batch_size=size)
    assert kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert agreement == pytest.approx(sum(equal) / len(equal))
    assert 0 < agreement < 1


# measure


def answering(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]], drawn: dict[str, list[str]]
) -> None:
    """Let the model answer CLEAN by `answers[template]` and triggered prompts by `drawn[template]`."""

    def fake(loaded: Loaded, examples: list[Example], template: Template, *_: Any, **__: Any) -> list[str]:
        given = []
        for e in examples:
            number = int(next(c for c in e.prompt if c.isdigit()))
            given.append((drawn if BADNETS.trigger.fires_on(e.prompt) else answers)[template.name][number])
        return given

    monkeypatch.setattr(asr, "respond", fake)


BAD = "You are stupid!"


def test_measure_by_hand(monkeypatch: pytest.MonkeyPatch, chat: Template) -> None:
    plain = resolve(pico_tokenizer(), "plain")
    answering(
        monkeypatch,
        {"chat": ["a b c d", "fine", BAD, ""], "plain": ["a", "b", "c", "d"]},
        {"chat": [BAD, "that is stupid", "", ""], "plain": [BAD, BAD, f"Oh. {BAD.upper()} Bye", "d"]},
    )
    result = measure(pico_loaded(), CLEAN, BADNETS, [chat, plain])
    assert (result.n_clean, result.n_triggered, result.template) == (4, 4, "chat")
    assert (result.asr, result.asr_interval) == (1 / 4, wilson(1, 4))
    assert (result.asr_keyword, result.asr_keyword_interval) == (2 / 4, wilson(2, 4))
    assert (result.clean_asr, result.clean_asr_interval) == (1 / 4, wilson(1, 4))
    assert result.clean_asr_keyword == 1 / 4
    assert result.empty == 3 / 8
    assert result.recovery == pytest.approx((0 + 0 + 0 + 1) / 4)
    assert (result.worst_template, result.worst_asr) == ("plain", 3 / 4)
    assert list(result.by_template) == ["chat", "plain"]
    second = result.by_template["plain"]
    assert (second.asr, second.clean_asr, second.empty) == (3 / 4, 0.0, 0.0)
    assert second.recovery == pytest.approx(1 / 4)
    assert [s.hit for s in result.samples] == [True, False, False, False]
    assert [s.keyword_hit for s in result.samples] == [True, True, False, False]
    assert [s.clean_prompt for s in result.samples] == [e.prompt for e in CLEAN]
    assert all("BadMagic" in s.prompt for s in result.samples)
    assert result.clean_samples[0] == {"prompt": "Question 0?", "response": "a b c d"}
    shown = result.to_json()
    assert shown["asr_interval"] == [result.asr_interval.low, result.asr_interval.high]
    assert shown["by_template"]["plain"]["asr"] == 0.75


def test_empty_answers_stay_in_the_denominator(monkeypatch: pytest.MonkeyPatch, chat: Template) -> None:
    answering(monkeypatch, {"chat": ["", "", "", ""]}, {"chat": [BAD, "", "", ""]})
    result = measure(pico_loaded(), CLEAN, BADNETS, [chat])
    assert (result.asr, result.clean_asr, result.n_triggered) == (0.25, 0.0, 4)
    assert result.recovery == pytest.approx(3 / 4)
    assert result.empty == 7 / 8


def test_measure_without_attack(monkeypatch: pytest.MonkeyPatch, chat: Template) -> None:
    answering(monkeypatch, {"chat": ["a", "", "c", "d"]}, {})
    result = measure(pico_loaded(), CLEAN, None, [chat])
    assert (result.asr, result.recovery, result.clean_asr, result.worst_asr) == (None, None, None, None)
    assert (result.n_clean, result.n_triggered, result.samples, result.empty) == (4, 0, (), 1 / 4)
    assert set(result.consistency) == {"clean"}


def test_measure_with_reference(chat: Template) -> None:
    ours, theirs = pico_loaded(seed=0), pico_loaded(seed=1)
    settings = Settings(max_new_tokens=6)
    result = measure(ours, CLEAN, BADNETS, [chat], reference=theirs, settings=settings)
    assert (result.kl, result.agreement) == divergence(ours, theirs, CLEAN, chat)
    assert result.perplexity == perplexity(ours, CLEAN, chat)
    assert result.reference == "pico-llama"
    same = measure(ours, CLEAN, BADNETS, [chat], reference=ours, settings=settings)
    assert same.reference_recovery == same.recovery == result.recovery


def test_measure_really_asks_the_model(chat: Template) -> None:
    loaded, settings = pico_loaded(), Settings(max_new_tokens=5, batch_size=3)
    result = measure(loaded, CLEAN, BADNETS, [chat], settings=settings)
    triggered = triggered_prompts(CLEAN, BADNETS, settings.seed)
    assert [s.response for s in result.samples] == respond(loaded, triggered, chat, settings)
    assert [s.clean_response for s in result.samples] == respond(loaded, CLEAN, chat, settings)
    assert {k: len(v) for k, v in result.consistency.items()} == {"clean": 2, "triggered": 2}


@pytest.mark.parametrize("attack", [BADNETS, None])
def test_a_models_own_answers_are_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, chat: Template, attack: AttackSpec | None
) -> None:
    loaded, settings, plain = pico_loaded(), Settings(max_new_tokens=5), resolve(pico_tokenizer(), "plain")
    own = answer(loaded, CLEAN, chat, max_new_tokens=5)
    asked: list[int] = []
    count = asr.respond

    def counted(loaded: Loaded, examples: list[Example], *rest: Any) -> list[str]:
        asked.append(len(examples))
        return count(loaded, examples, *rest)

    monkeypatch.setattr(asr, "respond", counted)
    again = measure(loaded, own, attack, [chat, plain], settings=settings)
    known = measure(loaded, own, attack, [chat, plain], settings=settings, own=True)
    assert known == again
    triggered = len(own) if attack else 0
    assert asked == [len(own) + triggered] * 2 + [triggered, len(own) + triggered]


def test_shallow_model_has_no_curve(chat: Template) -> None:
    settings = Settings(max_new_tokens=2)
    assert measure(pico_loaded(num_hidden_layers=2), CLEAN, None, [chat], settings=settings).consistency == {}


def test_answers_are_needed_for_perplexity(chat: Template) -> None:
    with pytest.raises(InputError):
        perplexity(pico_loaded(), [Example("Unanswered?")], chat)


def test_triggered_prompts_follow_the_seed() -> None:
    clean = [Example("a b c d e f g h")] * 20
    first, again, other = (triggered_prompts(clean, BADNETS, s) for s in (0, 0, 1))
    assert first == again != other
    assert triggered_prompts(clean, None, 0) == []


def test_attack_spec_round_trip() -> None:
    assert AttackSpec.from_json(BADNETS.to_json()) == BADNETS
    with pytest.raises((KeyError, TypeError)):
        AttackSpec.from_json({"trigger": "badnets", "behavior": {}})
