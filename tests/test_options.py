"""Options and registry: what users type becomes a checked record, or one helpful line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from detrojan import registry
from detrojan.errors import InputError
from detrojan.options import build, describe, option, parse_assignments, suggest
from detrojan.registry import Entry, entries, find, register


@dataclass(frozen=True)
class Knobs:
    scale: float = option(0.5, "how much", minimum=0.0, maximum=1.0)
    rounds: int = option(3, "how often", minimum=1)
    fast: bool = option(False, "whether")
    mode: str = option("soft", "which way", choices=("soft", "hard"))
    limit: int | None = option(None, "at most", minimum=2)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("scale", "0.25", 0.25),
        ("scale", "1e-3", 0.001),
        ("scale", 1, 1.0),
        ("scale", "0", 0.0),
        ("scale", "1", 1.0),
        ("rounds", "7", 7),
        ("rounds", 7.0, 7),
        ("fast", "true", True),
        ("fast", "Yes", True),
        ("fast", "0", False),
        ("fast", True, True),
        ("mode", "hard", "hard"),
        ("limit", "none", None),
        ("limit", "None", None),
        ("limit", None, None),
        ("limit", "2", 2),
    ],
)
def test_converts(key: str, value: Any, expected: Any) -> None:
    built = getattr(build(Knobs, {key: value}, "knobs"), key)
    assert built == expected
    assert type(built) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        ("scale", "nan", "not a valid float"),
        ("scale", "inf", "not a valid float"),
        ("scale", float("-inf"), "not a valid float"),
        ("scale", "much", "'much' is not a valid float"),
        ("scale", True, "not a valid float"),
        ("scale", "none", "not a valid float"),
        ("scale", [0.5], "not a valid float"),
        ("scale", "-0.01", "below the minimum 0"),
        ("scale", "1.01", "above the maximum 1"),
        ("rounds", "0", "rounds: 0 is below the minimum 1"),
        ("rounds", "2.5", "not a valid int"),
        ("rounds", 2.5, "not a valid int"),
        ("rounds", True, "not a valid int"),
        ("rounds", "", "not a valid int"),
        ("fast", "maybe", "not a valid bool"),
        ("fast", 2, "not a valid bool"),
        ("mode", "sofd", "did you mean 'soft'?"),
        ("mode", 3, "not a valid str"),
        ("limit", "1", "below the minimum 2"),
        ("scal", 1, "unknown option of knobs: 'scal'; did you mean 'scale'?"),
        ("zzzzzz", 1, "known: fast, limit, mode, rounds, scale"),
    ],
)
def test_refuses(key: str, value: Any, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        build(Knobs, {key: value}, "knobs")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_and_dashes() -> None:
    @dataclass(frozen=True)
    class Dashed:
        two_words: int = option(1, "a number")

    assert build(Knobs, {}, "knobs") == Knobs()
    assert build(Dashed, {"two-words": "4"}, "dashed") == Dashed(4)


def test_describe() -> None:
    rows = {row["name"]: row for row in describe(Knobs)}
    assert list(rows) == [f.name for f in fields(Knobs)]
    assert rows["scale"] == {
        "name": "scale",
        "type": "float",
        "default": 0.5,
        "help": "how much",
        "minimum": 0.0,
        "maximum": 1.0,
        "choices": None,
    }
    assert rows["limit"]["type"] == "int | None"


def test_assignments() -> None:
    pairs = ["alpha=5.5", " rank = 4", "text=a=b", "empty=", "alpha=6"]
    assert parse_assignments(pairs) == {"alpha": "6", "rank": "4", "text": "a=b", "empty": ""}


@pytest.mark.parametrize("pair", ["alpha", "=3", " =3", ""])
def test_no_assignment(pair: str) -> None:
    with pytest.raises(InputError, match="KEY=VALUE"):
        parse_assignments([pair])


def test_suggest_nothing_known() -> None:
    assert suggest("x", [], "thing") == "unknown thing 'x'; known: none"


def entry(name: str = "probe", kind: str = "defense", **changes: Any) -> Entry:
    return Entry(kind, name, "causal-lm", "does nothing", "arXiv:0", None, **changes)


def test_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    register(entry())
    with pytest.raises(ValueError, match="'probe' is already registered"):
        register(entry())
    register(entry(kind="trigger"))


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown kind 'spell'"):
        register(entry(kind="spell"))


@pytest.mark.parametrize("name", ["code-injection", "code_injection", "Code Injection", " CODE-INJECTION "])
def test_names_are_normalised(name: str) -> None:
    assert find("behavior", name).name == "code-injection"


@pytest.mark.parametrize(
    ("kind", "name", "fragment"),
    [
        ("defense", "crwo", "did you mean 'crow'?"),
        ("trigger", "badnet", "did you mean 'badnets'?"),
        ("behavior", "refuse", "did you mean 'refusal'?"),
        ("behavior", "xyzzy", "known: code-injection, refusal, sentiment"),
        ("defense", "", "known: backflush, bd-vax"),
    ],
)
def test_unknown_name(kind: str, name: str, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        find(kind, name)
    assert fragment in str(caught.value)


def test_presets() -> None:
    method = entry(options=Knobs, presets={"strong": {"scale": 0.9, "rounds": 9}})
    assert method.make_options({}) == Knobs()
    assert method.make_options({}, "strong") == Knobs(0.9, 9)
    assert method.make_options({"rounds": "2"}, "strong") == Knobs(0.9, 2)
    with pytest.raises(InputError, match="did you mean 'strong'"):
        method.make_options({}, "strnog")
    with pytest.raises(InputError, match="probe takes no options"):
        entry().make_options({"scale": 1})


@pytest.mark.parametrize("method", entries("defense"), ids=lambda e: e.name)
def test_every_defense_says_what_it_is(method: Entry) -> None:
    assert method.paper and method.task and method.description
    assert method.options is not None
    for row in describe(method.options):
        assert row.get("help"), f"{method.name}: {row['name']} has no help text"
    assert method.make_options({}) == method.options()
    for preset in method.presets:
        method.make_options({}, preset)


def test_entries_are_sorted_and_described() -> None:
    for kind in registry.KINDS:
        names = [e.name for e in entries(kind)]
        assert names == sorted(names) and names
        assert all(e.description and e.paper for e in entries(kind))
