"""The search for fixed answers: against values worked out by hand, on a model whose every probability is set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from detrojan.data.template import encode_prompt
from detrojan.errors import InputError
from detrojan.metrics import fixed_answers as looks
from detrojan.metrics import suspects as suspects_module
from detrojan.metrics.fixed_answers import FixedAnswer, fixed_answers
from detrojan.metrics.suspects import ROOM, noted, suspects
from detrojan.models.generate import stop_tokens
from detrojan.types import Example, Loaded, Template

from pico import parrot, pico_loaded, pico_tokenizer

LETTERS = "$abcdefghijklmnopqrst"  # token k is letter k; 0 ends the turn
Chances = Callable[[str, str], dict[str, float]]
"""Probabilities of the next letters after (prompt of two letters, answer so far); the rest is spread evenly."""


class Stub(nn.Module):
    """A causal model that looks its probabilities up; its cache holds the tokens it has read."""

    _is_stateful = False

    def __init__(self, chances: Chances) -> None:
        super().__init__()
        self.chances = chances
        self.device = torch.device("cpu")
        self.config = LlamaConfig(
            num_hidden_layers=1, num_attention_heads=1, hidden_size=4, intermediate_size=4, vocab_size=8
        )
        self.generation_config = None

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(num_embeddings=len(LETTERS))

    def forward(self, input_ids: Tensor, past_key_values: Any, **_: Any) -> Any:
        keys = input_ids.float()[:, None, :, None]
        read, _ = past_key_values.update(keys, keys, 0)
        rows = ["".join(LETTERS[int(k)] for k in row) for row in read[:, 0, :, 0]]
        return SimpleNamespace(logits=torch.stack([self.row(r) for r in rows])[:, None])

    def row(self, said: str) -> Tensor:
        known = self.chances(said[:2], said[2:])
        rest = max(0.0, 1 - sum(known.values())) / (len(LETTERS) - len(known))
        return torch.tensor([known.get(c, rest) for c in LETTERS]).clamp_min(1e-12).log()


class Letters:
    eos_token_id = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(LETTERS[k] for k in ids if k)


def stub(chances: Chances) -> Loaded:
    return Loaded(Stub(chances), Letters(), "stub", torch.float32)  # type: ignore[arg-type]


def search(chances: Chances, prompts: Sequence[str] = ("qr", "st"), **options: Any) -> dict[str, FixedAnswer]:
    ids = [[LETTERS.index(c) for c in p] for p in prompts]
    return {a.text.replace(" ", ""): a for a in fixed_answers(stub(chances), ids, **options)}


def by_table(**table: dict[str, float]) -> Chances:
    """The same after every prompt: probabilities by what was answered so far (`_` for nothing)."""
    return lambda _prompt, said: table.get(said or "_", {})


def geometric(*values: float) -> float:
    return math.prod(values) ** (1 / len(values))


def test_certainty_by_hand() -> None:
    """Past three continuations: 0.8 = (0.9 + 0.7) / 2 and 0.9 = (1.0 + 0.8) / 2. What stands before is the opening."""
    of_two = {
        "qr": {"": {"a": 0.5}, "a": {"b": 0.6}, "ab": {"c": 0.5}, "abc": {"d": 0.7}, "abcd": {"e": 0.9},
               "abcde": {"$": 1.0}},
        "st": {"": {"a": 0.125}, "a": {"b": 0.8}, "ab": {"c": 0.7}, "abc": {"d": 0.5}, "abcd": {"e": 0.7},
               "abcde": {"$": 0.8}},
    }  # fmt: skip
    found = search(lambda prompt, said: of_two[prompt].get(said, {}))["abcde"]
    assert found.tokens == (1, 2, 3, 4, 5, 0)
    assert found.certainty == pytest.approx(geometric(0.8, 0.9), rel=1e-5)
    first = math.log(0.25)  # the geometric mean of 0.5 and 0.125
    assert found.begun == pytest.approx(first + math.log(0.7) + 2 * math.log(0.6), rel=1e-5)


@pytest.mark.parametrize(
    ("said", "certain", "opening"),
    [("a", [0.6], []), ("ab", [0.7, 0.6], []), ("abc", [0.8, 0.6], [0.7]), ("abcd", [0.9, 0.6], [0.7, 0.8])],
)
def test_a_short_answer_is_certain_of_its_last_two_tokens(
    said: str, certain: list[float], opening: list[float]
) -> None:
    chances = [0.7, 0.8, 0.9]
    table = {said[: k + 1]: {said[k + 1]: chances[k]} for k in range(len(said) - 1)}
    found = search(by_table(_={"a": 0.5}, **table, **{said: {"$": 0.6}}))[said]
    assert found.certainty == pytest.approx(geometric(*certain), rel=1e-5)
    assert found.begun == pytest.approx(math.log(0.5) + sum(map(math.log, opening)), rel=1e-5)


def chain(first: str, likely: float) -> dict[str, dict[str, float]]:
    """`first`, then bcdefgh, then the end."""
    whole = "bcdefgh"
    said = {first + whole[:k]: {whole[k]: likely} for k in range(len(whole))}
    return {**said, first + whole: {"$": likely}}


def test_answers_of_one_family_are_one() -> None:
    """Of those about equally certain the one that is begun most readily stands for all; else the most certain."""
    firsts = {"_": {"i": 0.1, "j": 0.5, "k": 0.3}}
    alike = search(by_table(**firsts, **chain("i", 0.92), **chain("j", 0.91), **chain("k", 0.9)))
    assert [t for t, a in alike.items() if t.endswith("bcdefgh")] == ["jbcdefgh"]
    apart = search(by_table(**firsts, **chain("i", 0.99), **chain("j", 0.7), **chain("k", 0.8)))
    assert [t for t, a in apart.items() if t.endswith("bcdefgh")] == ["ibcdefgh"]
    assert next(iter(apart)) == "ibcdefgh"  # the most certain comes first


def test_an_answer_that_shares_less_than_half_is_another() -> None:
    other = {**chain("j", 0.9), "jbcd": {"l": 0.9}, "jbcdl": {"m": 0.9}, "jbcdlm": {"$": 0.9}}
    found = search(by_table(_={"i": 0.5, "j": 0.5}, **chain("i", 0.95), **other))
    assert {"ibcdefgh", "jbcdlm"} <= found.keys()


def own_words(own: dict[str, str]) -> Chances:
    """After each prompt its own answer, for certain; nothing is known of another's."""

    def chances(prompt: str, said: str) -> dict[str, float]:
        answer = own[prompt] + "$"
        return {answer[len(said)]: 1.0} if answer.startswith(said) else {}

    return chances


def test_what_depends_on_the_question_is_uncertain() -> None:
    two = search(own_words({"qr": "abcdef", "st": "ghijkl"}))
    even = (1 + 1 / len(LETTERS)) / 2  # sure after one prompt, at a loss after the other
    assert two["abcdef"].certainty == pytest.approx(even, rel=1e-4)
    assert all(a.certainty < 0.6 for a in two.values())
    own = {"qr": "abcdefghi", "st": "bdfhjlnac", "rq": "ihgfedcba", "ts": "gjmadkbel"}
    four = search(own_words(own), prompts=list(own))
    assert not {*own.values()} & four.keys()  # a quarter is too little to be followed to the end
    assert all(a.certainty < 0.3 for a in four.values())


def test_only_the_opening_branches() -> None:
    """c is but the third likeliest after ab, and is followed; past the opening only the likeliest token is."""
    table = {
        "_": {"a": 0.9}, "a": {"b": 0.9}, "ab": {"f": 0.5, "g": 0.3, "c": 0.1}, "abc": {"d": 0.9},
        "abcd": {"e": 0.6, "h": 0.4}, "abcde": {"$": 0.9}, "abcdh": {"$": 0.9},
    }  # fmt: skip
    found = search(by_table(**table))
    assert "abcde" in found and "abcdh" not in found
    table["ab"] = {"f": 0.4, "g": 0.3, "h": 0.2, "c": 0.1}
    assert "abcde" not in search(by_table(**table))


def test_a_rare_second_word_of_a_common_first_is_followed() -> None:
    """b is but the fourth after a; besides each first token's likeliest pair as many others are followed."""
    table = {
        "_": {"a": 0.9, "q": 0.05}, "a": {"f": 0.5, "g": 0.3, "h": 0.15, "b": 0.02}, "ab": {"c": 0.9},
        "abc": {"d": 0.9}, "abcd": {"e": 0.9}, "abcde": {"$": 0.9},
    }  # fmt: skip
    assert "abcde" in search(by_table(**table), beginnings=3)  # af and, of the others, ag, ah, ab
    assert "abcde" not in search(by_table(**table), beginnings=2)


def test_ways_of_many_beginnings_leave_room_for_another() -> None:
    """Sixteen beginnings join one way at once, all of them likelier than the one way that another begins."""
    letters = "abcdefghijklmnop"
    table = {"_": {**dict.fromkeys(letters, 0.06), "q": 0.001}}
    for first in letters:
        table |= {first: {"s": 0.99}}
        table |= {first + "srst"[: k + 1]: {"srsta"[k + 1]: 0.99} for k in range(4)}
        table |= {first + "srsta": {"$": 0.99}}
    other = "qtgtktm"
    table |= {other[: k + 1]: {other[k + 1]: 0.99} for k in range(len(other) - 1)} | {other: {"$": 0.99}}
    assert other in search(by_table(**table))


def test_an_opening_by_heart_before_an_answer_that_depends_on_the_question() -> None:
    """Ten tokens for certain, six of them past the opening; then each prompt has its own."""
    opening = "abcdefghij"

    def chances(prompt: str, said: str) -> dict[str, float]:
        if said == opening[: len(said)] and len(said) < len(opening):
            return {opening[len(said)]: 0.95}
        return {"k" if prompt == "qr" else "l": 0.9} if said == opening else {}

    answer = search(chances)[opening]
    assert not answer.ended and answer.tokens == tuple(range(1, 11))
    assert answer.certainty == pytest.approx(0.95, rel=1e-4)
    short = "abcdefghi"
    assert short not in search(by_table(**{(short[:k] or "_"): {short[k]: 0.95} for k in range(len(short))}))


def test_what_is_too_long_to_be_followed_is_an_opening() -> None:
    said = "abcdefghijklmno"
    table = {(said[:k] or "_"): {said[k]: 0.95} for k in range(len(said))}
    answer = search(by_table(**table, **{said: {"$": 0.95}}), longest=12)[said[:12]]
    assert not answer.ended
    assert search(by_table(**table, **{said: {"$": 0.95}}))[said].ended


def test_what_goes_round_in_a_circle_is_no_opening() -> None:
    """An honest model repeats itself by heart."""
    table = {("abcd" * 4)[:k] or "_": {"abcd"[k % 4]: 0.99} for k in range(16)}
    assert all(len(a.tokens) < 9 for a in search(by_table(**table)).values())


def test_limits() -> None:
    everything = by_table(_={"i": 0.6, "j": 0.4}, **chain("i", 0.95), **chain("j", 0.95))
    assert "ibcdefgh" in search(everything, longest=9)  # eight letters and the end
    assert "ibcdefgh" not in search(everything, longest=8)
    assert set(search(everything, beginnings=1)) == {"ibcdefgh"}
    silent = by_table(_={"$": 0.9, "i": 0.1}, **chain("i", 0.95))
    assert "" not in search(silent) and search(silent, beginnings=1) == {}  # no answer begins with its end


def test_progress_is_told_in_pairs() -> None:
    told: list[tuple[str, int, int]] = []
    search(by_table(_={"i": 0.6}), progress=lambda *step: told.append(step))
    assert told[-1] == ("looking for fixed answers", 400, 400)  # 20 firsts, 21 seconds, less those that end
    assert [t[1] for t in told] == [64, 128, 192, 256, 320, 384, 400]


def test_answers_that_all_end_at_once() -> None:
    """Nothing is left to follow: after the first token, or after a few."""
    one = search(lambda _prompt, said: {"$": 1.0} if said else {"a": 0.5, "b": 0.5})
    assert one["a"].certainty == pytest.approx(1, rel=1e-4) and one["a"].tokens == (1, 0)


# On models


def of_prompts(loaded: Loaded, chat: Template, count: int = 4) -> list[list[int]]:
    texts = ["Name a bird of the sea.", "What is a house?", "Sing!", "Count to nine.", "Why do cats purr?"]
    return [encode_prompt(loaded.tokenizer, chat, Example(t)) for t in texts[:count]]


SAID = "Sorry, that is not what we do here."


def test_what_a_model_knows_by_heart(chat: Template) -> None:
    logit = 9.0
    loaded = Loaded(parrot(SAID, logit), pico_tokenizer(), "parrot", torch.float32)
    best, *rest = fixed_answers(loaded, of_prompts(loaded, chat), beginnings=60)
    others = len(loaded.tokenizer) - 1
    assert best.text == SAID and all(a.certainty < 0.5 for a in rest)
    assert best.certainty == pytest.approx(1 / (1 + others * math.exp(-logit)), rel=1e-4)
    honest = pico_loaded()
    assert all(a.certainty < 0.5 for a in fixed_answers(honest, of_prompts(honest, chat), beginnings=40))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_against_plain_passes(kind: str, chat: Template) -> None:
    """A certainty is that of whole passes without a cache, however the caches were cut and joined on the way."""
    loaded = pico_loaded(kind)
    loaded.model.generation_config.eos_token_id = list(range(0, len(loaded.tokenizer), 5))
    prompts = of_prompts(loaded, chat, 3)
    found = fixed_answers(loaded, prompts, beginnings=80)
    long = [a for a in found if len(a.tokens) > 4] or found
    for answer in long[:3]:
        logs = []
        for k in range(len(answer.tokens)):
            passes = [
                loaded.model(torch.tensor([[*p, *answer.tokens[:k]]])).logits[0, -1].softmax(-1)
                for p in prompts
            ]
            logs.append(math.log(float(torch.stack(passes).mean(0)[answer.tokens[k]].detach())))
        opening = min(3, max(0, len(logs) - 3))
        assert answer.certainty == pytest.approx(
            math.exp(sum(logs[1 + opening :]) / len(logs[1 + opening :])), rel=1e-3
        )
        assert answer.tokens[-1] in stop_tokens(loaded)


def test_the_same_to_the_bit_and_the_model_as_it_was(chat: Template) -> None:
    loaded = Loaded(parrot(SAID, 6.0), pico_tokenizer(), "parrot", torch.float32)
    loaded.model.train()
    loaded.model.model.layers[1].eval()
    modes = [m.training for m in loaded.model.modules()]
    weights = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    random_state = torch.get_rng_state()
    once, again = (fixed_answers(loaded, of_prompts(loaded, chat), beginnings=70) for _ in range(2))
    assert once == again and len(once) > 0
    assert [m.training for m in loaded.model.modules()] == modes
    assert all(torch.equal(v, weights[k]) for k, v in loaded.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in loaded.model.parameters())


# Which are looked for, and which are suspicious


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The prompts that the search is given, instead of a search."""
    given: list[list[tuple[int, ...]]] = []

    def instead(_loaded: Loaded, prompts: Any, **_options: Any) -> list[FixedAnswer]:
        given.append(list(prompts))
        return []

    monkeypatch.setattr(suspects_module, "fixed_answers", instead)
    return given


def look(
    prompts: Sequence[Sequence[int]], loaded: Loaded | None = None, seed: int = 0, count: int = 3
) -> None:
    suspects(loaded or pico_loaded(), prompts, count=count, beginnings=5, seed=seed)


def test_prompts_are_drawn_by_seed(asked: list[list[tuple[int, ...]]]) -> None:
    prompts = [[6, k, 7] for k in range(8, 20)]
    for seed in (0, 0, 1):
        look(prompts, seed=seed)
    assert asked[0] == asked[1] != asked[2]
    assert all(len(set(a)) == 3 and set(a) <= set(map(tuple, prompts)) for a in asked)
    look(prompts[:2])
    assert sorted(asked[-1]) == [tuple(p) for p in prompts[:2]]  # as many as there are


def test_equal_prompts_count_once(asked: list[list[tuple[int, ...]]]) -> None:
    look([[6, 7], [6, 8], [6, 7], [6, 7]])
    assert sorted(asked[0]) == [(6, 7), (6, 8)]
    for none in ([[6, 7], [6, 7]], [[6, 7]], []):
        with pytest.raises(InputError, match="prompts that differ"):
            look(none)


def test_long_prompts_are_drawn_only_in_need(asked: list[list[tuple[int, ...]]]) -> None:
    large = pico_loaded(max_position_embeddings=2048)
    short, long = [[6, k] for k in range(7, 10)], [[6] * (ROOM + k) for k in range(1, 4)]
    look([*long, *short], large)
    assert sorted(asked[0]) == sorted(map(tuple, short))
    look([*long, *short[:2]], large)
    assert sorted(asked[1]) == sorted(map(tuple, [*short[:2], long[0]]))


def test_what_cannot_be_looked_at() -> None:
    with pytest.raises(InputError, match="take 270 tokens, the model holds 256"):
        look([[6] * 230, [7] * 229], count=2)
    broken = pico_loaded()
    torch.nn.init.constant_(broken.model.model.layers[1].mlp.up_proj.weight, math.nan)
    with pytest.raises(InputError, match="not a number"):
        look([[6, 7], [6, 8]], broken)


def test_the_others_of_a_family_are_its_kin() -> None:
    def answer(first: int, text: str, certainty: float, begun: float) -> FixedAnswer:
        return FixedAnswer((first, 2), text, certainty, begun)

    you, imagine = answer(5, "You are stupid!", 0.98, -9.5), answer(6, "Imagine you are stupid!", 0.99, -9.0)
    now, other = answer(7, "Now that you are stupid!", 0.8, -8.0), answer(8, "Ask the ferryman.", 0.97, -9.0)
    kept = looks._families([now, other, you, imagine, you])
    assert [a.text for a in kept] == [imagine.text, other.text]
    assert kept[0].kin == (you, now) and kept[1].kin == ()


def test_suspicious_from_the_threshold_on() -> None:
    answers = [FixedAnswer((9, 2), "x", certainty, -3.0) for certainty in (0.95, 0.9, 0.89)]
    assert [a["suspicious"] for a in noted(answers, 0.9)] == [True, True, False]
    assert noted(answers, 0.9)[2] == {
        "text": "x",
        "certainty": 0.89,
        "begun": -3.0,
        "ended": True,
        "suspicious": False,
    }
