"""`detrojan report`: one directory's page again, several side by side, and everything else refused in one line."""

import copy
import json
import re
import shlex
import sys
from html.parser import HTMLParser

import pytest
from browser import needs_browser, shown

from detrojan import api, cli, manifest
from detrojan.report.compare import compare, grouped
from detrojan.report.grid import grid_page
from detrojan.report.page import page
from detrojan.report.words import stages
from detrojan.written import report

EVIL = '<script>alert("x")</script><img src=x>'
DOT = "data:image/png;base64,iVBORw0KGgo="
BADNETS = {"trigger": {"name": "badnets", "options": {}}, "mode": "all-to-one", "target": 0}


def measured(accuracy, asr=None, **changes):
    """Return a ClassifierResult as JSON data."""
    return {
        "model": "m",
        "accuracy": accuracy,
        "accuracy_interval": [accuracy, accuracy],
        "n_clean": 1000,
        "n_triggered": 0 if asr is None else 900,
        "asr": asr,
        "asr_interval": None if asr is None else [asr, asr],
        "recovery_accuracy": None if asr is None else 0.5,
        "recovery_interval": None,
        "classes": ["cat", "dog"],
        "per_class": [accuracy, accuracy],
        **changes,
    }


def attacked(weights="bad", **changes):
    """Return the manifest of an attack whose model has weights of this hash."""
    return {
        "command": "detrojan attack m",
        "kind": "attack",
        "task": "image",
        "model": "m",
        "method": {"attack": "badnets"},
        **BADNETS,
        "seconds": 60.0,
        "pictures": DOT,
        "inputs": {"model.safetensors": "good"},
        "outputs": {"model.safetensors": weights, "trigger.safetensors": "t", "config.json": "c"},
        "before": measured(0.95),
        "after": measured(0.94, 0.99),
        **changes,
    }


def cleaned(defense="ulrl", asr=0.02, weights="bad", **changes):
    """Return the manifest of a defense that started from weights of this hash."""
    return {
        "command": f"detrojan clean m --defense {defense}",
        "kind": "clean",
        "task": "image",
        "model": "m",
        "method": {"defense": defense},
        "seconds": 7.0,
        "pictures": DOT,
        "attack": BADNETS,
        "notes": {"scores": [9.0, 0.5], "suspicious": [0], "threshold": 4.5},
        "inputs": {"model.safetensors": weights, "config.json": "c"},
        "outputs": {"model.safetensors": f"{defense} of {weights}"},
        "before": measured(0.94, 0.98),
        "after": measured(0.93, asr),
        **changes,
    }


def language(**changes):
    """Return the manifest of a cleaned language model."""
    result = {"model": "m", "template": "chat", "n_clean": 5, "n_triggered": 5, "asr": 0.5, "perplexity": 2.0}
    return {
        "command": "detrojan clean m",
        "kind": "clean",
        "model": "m",
        "method": {"defense": "crow"},
        "before": result,
        "after": result,
        **changes,
    }


def summary(name="small", asr=0.02, **changes):
    """Return the summary of a grid of one attack and one defense."""
    cells = [{"text": f"{100 * m:.1f}", "mean": m, "failed": 0, "best": m == asr} for m in (1.0, asr)]
    measure = {
        "key": "asr",
        "title": "ASR",
        "lower": True,
        "rate": True,
        "lines": [{"attack": "a", "cells": cells}],
    }
    subject = {
        "name": "net",
        "columns": ["attacked", "ulrl"],
        "measures": [measure],
        "seconds": [1.0, 2.0],
    }
    return {
        "grid": name,
        "task": "classifier",
        "tolerance": 0.02,
        "legend": "Seeds 0.",
        "subjects": [subject],
        "published": [],
        "errors": [],
        **changes,
    }


class Seen(HTMLParser):
    """Collects the elements and the text of a page, and the heads of its first table."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.heads, self.links = [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in {"src", "href", "action"} and tag != "use"]
        if tag == "th" and dict(attrs).get("scope") == "col" and self.tags.count("table") == 1:
            self.heads.append("")

    def handle_data(self, data):
        self.text += data
        if self.tags[-1:] == ["th"] and self.tags.count("table") == 1 and self.heads[-1:] == [""]:
            self.heads[-1] = data


def put(place, data, name="detrojan.json"):
    place.mkdir()
    (place / name).write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return place


def run(monkeypatch, capsys, line):
    """Run a command line in this process: its exit status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["detrojan", *shlex.split(line)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    shown = capsys.readouterr()
    return int(left.value.code or 0), shown.out, shown.err


def test_one_directory_gives_its_page_again(tmp_path):
    for name, data in {"bad": attacked(), "kept": cleaned(), "lm": language()}.items():
        place = put(tmp_path / name, data)
        assert report([place]).html == page(manifest.read(place))


def test_what_attack_and_clean_wrote_stands_side_by_side(digits_dir, tmp_path, monkeypatch, capsys):
    bad, kept = digits_dir / "bad", tmp_path / "kept"
    api.clean(bad, data="digits", defense="finetune", samples=60, attack=bad, out=kept, epochs=1)
    assert report([bad]).html == (bad / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()  # what the libraries said
    out, figures = tmp_path / "both.html", tmp_path / "both.json"
    status, shown, err = run(monkeypatch, capsys, f"report {kept} {bad} --out {out} --json {figures}")
    assert (status, err) == (0, "") and f"report: {out}" in shown.replace("\n", "")
    seen = Seen(out.read_text(encoding="utf-8"))
    assert seen.heads == ["Measure", "original", "attacked", "after plain fine-tuning"]
    data = json.loads(figures.read_text(encoding="utf-8"))
    (part,) = data["parts"]
    assert part["name"] == str(bad) and part["verdict"] in seen.text
    after = manifest.read(kept)["after"]
    assert part["stages"][2]["asr"] == after["asr"]
    assert part["stages"][2]["accuracy_interval"] == after["accuracy_interval"]


def test_a_cleaned_model_joins_the_victim_with_the_same_weights():
    given = [
        ("kept", cleaned()),
        ("bad", attacked()),
        ("other", cleaned(weights="elsewhere")),
        ("control", cleaned("finetune", weights="good")),  # of the model before the attack
        ("again", cleaned("clp", weights="elsewhere")),
        ("memory", cleaned("nad", inputs={})),
        ("memory too", cleaned("nad", inputs={"config.json": "c"})),
    ]
    chains = [[name for name, _ in chain] for chain in grouped(given)]
    assert chains == [["bad", "kept"], ["other", "again"], ["control"], ["memory"], ["memory too"]]
    demo = {"kind": "demo", "stages": {}, "outputs": {"attacked/model.safetensors": "x", "ulrl/m.gguf": "y"}}
    chains = grouped([("d", demo), ("a", cleaned(weights="x")), ("b", cleaned(weights="y"))])
    assert [[name for name, _ in chain] for chain in chains] == [["d", "a"], ["b"]]


def test_what_the_defenses_started_from_stands_there_once():
    given = [("bad", attacked()), ("a", cleaned()), ("b", cleaned("finetune", 0.6))]
    merged, parts = compare(given)
    assert [s.label for s in stages(merged)] == [
        "original",
        "attacked",
        "after ULRL",
        "after plain fine-tuning",
    ]
    assert [s.result["asr"] for s in stages(merged)] == [None, 0.99, 0.02, 0.6]
    assert [s.result.get("seconds") for s in stages(merged)] == [None, 60.0, 7.0, 7.0]
    assert [p.remarks for p in parts] == [()]
    text = Seen(page(merged, parts)).text
    assert "Attack success rate is 2 % (95 % interval 2 to 2 %) after ULRL; 60 %" in text
    assert "The backdoor is still there after plain fine-tuning: 60 %" in text
    assert text.index("from 99 % before") < text.index("What was measured")
    assert "Which class stands out: a" in text and "Which class stands out: b" in text
    assert "detrojan attack m\ndetrojan clean m --defense ulrl\ndetrojan clean m --defense finetune" in text
    merged, _ = compare(given[1:])
    assert [s.label for s in stages(merged)] == ["before", "after ULRL", "after plain fine-tuning"]
    assert stages(merged)[0].result["asr"] == 0.98
    merged, _ = compare([("bad", attacked(after=None)), ("a", cleaned())])  # the attack was not measured
    assert [s.result["asr"] for s in stages(merged)] == [None, 0.98, 0.02]


def test_a_demo_keeps_its_own_stages():
    own = {"attacked": measured(0.9, 1.0), "finetune": measured(0.9, 0.9), "ulrl": measured(0.9, 0.1)}
    demo = {**attacked(), "kind": "demo", "stages": own, "attack": BADNETS}
    demo["outputs"] = {"attacked/model.safetensors": "bad"}
    merged, parts = compare([("a", cleaned()), ("demo", demo), ("b", cleaned("clp"))])
    assert [s.label for s in stages(merged)] == [
        "attacked",
        "after plain fine-tuning",
        "after ULRL",
        "after ULRL (a)",
        "after clp",
    ]
    assert len(parts) == 1 and list(own) == ["attacked", "finetune", "ulrl"]  # not changed


def test_the_same_defense_twice_is_told_apart_by_directory():
    merged, _ = compare([("one", cleaned()), ("two", cleaned(asr=0.3))])
    assert [s.label for s in stages(merged)] == ["before", "after ULRL (one)", "after ULRL (two)"]


def test_several_victims_have_a_verdict_each():
    other = {"trigger": {"name": "sig", "options": {}}, "mode": "all-to-one", "target": 1}
    merged, parts = compare([("bad", attacked()), ("kept", cleaned(weights="x", attack=other))])
    assert [s.label for s in stages(merged)] == [
        "bad: before",
        "bad: after the attack",
        "kept: before",
        "kept: after ULRL",
    ]
    assert [p.name for p in parts] == ["bad", "kept"] and not any(p.remarks for p in parts)
    html = page(merged, parts)
    assert "Attack success rate is 99 %" in html and "fell from 98 % to 2 %" in html
    assert "draws class" not in Seen(html).text and "<img" not in html  # another trigger in each


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, None),
        ({"n_triggered": 10}, "number of triggered samples"),
        ({"n_clean": 10}, "number of clean samples"),
        ({"n_triggered": 0, "asr": None}, None),  # not measured at all
        ({"n_clean": 1, "perplexity_of": "x", "template": "y"}, "number of clean samples"),
    ],
)
def test_what_was_not_measured_alike_is_said(change, named):
    given = [("bad", attacked()), ("kept", cleaned(after={**measured(0.9, 0.1), **change}))]
    merged, (part,) = compare(given)
    assert [named] == [r and re.search("the (.*) differed", r).group(1) for r in part.remarks or [None]]
    assert (" compare with care" in page(merged, [part])) is bool(named)


def test_another_trigger_is_said():
    other = {**BADNETS, "trigger": {"name": "sig", "options": {}}}
    _, (part,) = compare([("a", cleaned()), ("b", cleaned("clp", attack=other))])
    assert part.remarks == ("Not all was measured alike, so compare with care: the trigger differed.",)


def test_all_answers_whose_perplexity_is_taken_are_named():
    given = []
    for name, of in (("a", "the reference"), ("b", "the data"), ("c", "the reference")):
        given.append((name, language(after={**language()["after"], "perplexity_of": of})))
    assert "Perplexity is that of: the reference; the data." in page(*compare(given))


def test_files_of_evaluate(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(measured(0.9, 0.25)), encoding="utf-8")
    other.write_text(json.dumps({**measured(0.8, 0.5), "model": EVIL}), encoding="utf-8")
    alone = Seen(report([one]).html)
    assert alone.heads == ["Measure", "as measured"] and "Attack success rate is 25 %" in alone.text
    assert "How to reproduce" not in alone.text
    both = report([one, other])
    assert Seen(both.html).heads == ["Measure", f"{one}: as measured", f"{other}: as measured"]
    assert [p["stages"][0]["accuracy"] for p in both.parts] == [0.9, 0.8]
    answers = {**language()["after"], "samples": []}
    one.write_text(json.dumps(answers), encoding="utf-8")
    assert "Attack success rate is 50 %." in Seen(report([one]).html).text


def test_grids(tmp_path):
    first = put(tmp_path / "one", {"command": "detrojan bench a", "summary": summary()}, "grid.json")
    papers = [{"model": "m", "attack": "a", "defense": "d", "asr": 1.0, "paper": "p"}]
    more = summary("big", 0.3, published=papers * 2)
    other = put(tmp_path / "two", {"command": "detrojan bench b", "summary": more}, "grid.json")
    assert report([first]).html == grid_page(summary(), "detrojan bench a")
    both = report([first, other])
    text = Seen(both.html).text.replace("\u00a0", " ")
    assert [p["name"] for p in both.parts] == [f"net, {first}", f"net, {other}"]
    assert all(p["verdict"] in text for p in both.parts) and "big" in text
    assert "detrojan bench a\ndetrojan bench b" in text
    assert both.parts[1]["measures"][0]["columns"] == ["attacked", "ulrl"]
    assert grid_page(more, "c").count(">1.0</td><td>p<") == 2 and both.html.count(">1.0</td><td>p<") == 2


BAD = {
    "nothing there": ("nowhere", None, "no such directory"),
    "an empty directory": ("empty", "", "holds neither detrojan.json nor grid.json"),
    "broken JSON": ("broken", '{"a": 1,\n oops}', "detrojan.json:2: broken JSON"),
    "deep JSON": ("deep", "[" * 100_000, "not as detrojan writes it"),
    "a list": ("list", "[1, 2]", "not as detrojan writes it"),
    "null": ("null", "null", "not as detrojan writes it"),
    "another program's": ("other", '{"command": "x"}', "nothing to report"),
    "a scan": ("scan", '{"command": "x", "kind": "scan"}', "nothing to report"),
    "stages that are none": ("stages", {**attacked(), "kind": "demo", "stages": [1, 2]}, "not as detrojan"),
    "a result that is none": ("result", {**cleaned(), "after": "good"}, "not as detrojan writes it"),
    "an endless number": ("number", cleaned(after=measured(0.9, 10**400)), "not as detrojan writes it"),
    "a method that is none": ("method", cleaned(method=["ulrl"]), "not as detrojan writes it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, tmp_path, monkeypatch, capsys):
    name, data, said = BAD[case]
    if data is not None:
        put(tmp_path / name, data, "detrojan.json" if data else "else.txt")
    good, out = put(tmp_path / "good", cleaned()), tmp_path / "out.html"
    for line in (f"report {tmp_path / name}", f"report {good} {tmp_path / name}"):
        status, shown, err = run(monkeypatch, capsys, f"{line} --out {out}")
        assert (status, shown) == (2, "") and err.count("\n") == 1 and str(tmp_path / name) in err
        assert said in err and "Traceback" not in err and not out.exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("bad bad/../bad", "given twice"),
        ("bad lm", "a classifier, "),
        ("grid bad", "bad: no grid"),
        ("old", "grid.json holds no results; run the same detrojan bench again"),
        ("shape", "not as detrojan writes it"),
        ("grid text", "text: task causal-lm, of "),
        ("bad --out page.txt", "--out page.txt: must end in .html"),
        ("bad --out nowhere/page.html", "not a file in a directory that exists"),
        ("bad --json nowhere/page.json", "--json nowhere/page.json"),
        ("", "Missing argument"),
    ],
)
def test_what_does_not_belong_together(names, said, tmp_path, monkeypatch, capsys):
    put(tmp_path / "bad", attacked())
    put(tmp_path / "lm", language())
    put(tmp_path / "grid", {"summary": summary()}, "grid.json")
    put(tmp_path / "text", {"summary": summary(task="causal-lm")}, "grid.json")
    put(tmp_path / "old", {"grid": "g", "source": "g.yaml"}, "grid.json")
    put(tmp_path / "shape", {"summary": {"subjects": [3]}}, "grid.json")
    monkeypatch.chdir(tmp_path)
    status, shown, err = run(monkeypatch, capsys, f"report {names}")
    assert (status, shown) == (2, "") and said in err and err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_hostile_text_is_escaped_wherever_it_comes_from(tmp_path):
    evil = attacked(model=EVIL, command=EVIL, **{EVIL: "x" * 10**6})
    evil["trigger"] = {"name": EVIL, "phrases": [EVIL]}
    evil["after"] = measured(0.9, 0.9, classes=[EVIL, "\u202e\x07"])
    kept = cleaned(EVIL, attack={k: evil[k] for k in BADNETS}, pictures="https://example.org/x.png")
    kept["notes"] = {**kept["notes"], EVIL: EVIL}
    places = [put(tmp_path / "a<b>", evil), put(tmp_path / "c", kept)]
    html = report(places).html
    seen = Seen(html)
    assert "script" not in seen.tags and "b" not in seen.tags and seen.tags.count("img") == 1
    assert seen.links == [DOT] and "https:" not in html
    assert f"after {EVIL}" in seen.text and str(places[0]) in seen.text and len(html) < 200_000
    assert not re.search("[\x00-\x08\u202e]", html)


def test_the_page_is_the_same_each_time_and_no_manifest_is_changed():
    given = [("bad", attacked()), ("kept", cleaned())]
    before = copy.deepcopy(given)
    assert page(*compare(given)) == page(*compare(given)) and given == before


@needs_browser
def test_in_a_browser(tmp_path):
    rest = [
        cleaned(d, a, weights=w)
        for d, a, w in (("ulrl", 0.02, "bad"), ("nad", 0.5, "bad"), ("clp", 1.0, "x"))
    ]
    merged, parts = compare([("bad", attacked()), *((f"a long name {k}", m) for k, m in enumerate(rest))])
    html = page(merged, parts)
    # The page allows no script, so on a phone its width is measured from a copy without the policy.
    measure = "<script>document.title = document.documentElement.scrollWidth > innerWidth</script></body>"
    phone = re.sub("<meta http-equiv.*?>", "", html).replace("</body>", measure)
    assert "fell from" in shown(html, tmp_path, "--window-size=1200,900")
    assert "<title>false</title>" in shown(phone, tmp_path, "--window-size=360,900")
