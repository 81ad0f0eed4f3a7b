"""The report of a grid, on summaries made by hand."""

import copy
import hashlib
import json
import math
import re
from base64 import b64encode
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from browser import needs_browser, shown

from detrojan.bench import tables
from detrojan.bench.grid import Attack, Defense, Grid
from detrojan.report.curves import INK
from detrojan.report.grid import errors, grid_page, order
from detrojan.report.grid_plots import BLUE, LONGEST, apart, short
from detrojan.report.grid_verdict import verdict
from detrojan.report.standings import read

EVIL = '<script>alert("x")</script><img src=x>$\\frac$'
VOID = {"meta", "path", "use", "rect"}


def cell(mean, best=False, failed=0):
    text = "failed" if mean is None and failed else "-" if mean is None else f"{100 * mean:.1f} [1, 99]"
    if mean is not None and failed:
        text += f" ({failed} failed)"
    return {"text": text, "mean": mean, "failed": failed, "best": best}


def table(key, lines, lower=True, failed=()):
    """Return a measure of the summary; `lines` is attack -> the means of the columns, attacked first."""
    return {
        "key": key,
        "title": {"asr": "Attack success rate, %", "accuracy": "Accuracy on clean samples, %"}.get(key, key),
        "lower": lower,
        "rate": key != "perplexity",
        "lines": [
            {
                "attack": attack,
                "cells": [
                    cell(
                        m,
                        k > 0 and m == min(means[1:], key=lambda m: 2 if m is None else m),
                        (attack, k) in failed,
                    )
                    for k, m in enumerate(means)
                ],
            }
            for attack, means in lines.items()
        ],
    }


def subject(rates, kept, names=("one", "two"), key="accuracy", failed=(), name="net on digits"):
    return {
        "name": name,
        "columns": ["attacked", *names],
        "measures": [table("asr", rates, failed=failed), table(key, kept, key == "perplexity", failed)],
        "seconds": [12.0, *(float(k) for k, _ in enumerate(names, 3))],
    }


def summary(*subjects, task="classifier", **changes):
    return {
        "grid": "small",
        "task": task,
        "tolerance": 0.02 if task == "classifier" else 0.1,
        "legend": "Seeds 0.\nBest defense of a line in bold.",
        "subjects": list(subjects),
        "published": [],
        "errors": [],
        **changes,
    }


def said(given, tolerance=0.02):
    line, notes = verdict(read(given), tolerance)
    assert not re.search(r"\b(clean|safe|secure|removed|free)\b", " ".join([line, *notes]), re.IGNORECASE)
    return line, notes


KEPT = {"a": [0.95, 0.94, 0.94], "b": [0.93, 0.94, 0.92]}
WINS = subject({"a": [1.0, 0.02, 0.5], "b": [0.9, 0.04, 0.07]}, KEPT)
LOSES = subject({"a": [1.0, 0.9, 0.5], "b": [0.9, 0.3, 0.6]}, KEPT)
FAILED = subject(
    {"a": [1.0, 0.02, 0.5], "b": [0.9, None, 0.3], "c": [None, None, None]},
    {"a": [0.95, 0.94, 0.94], "b": [0.93, None, 0.93], "c": [None, None, None]},
    failed={("b", 1), ("a", 2), ("c", 0), ("c", 1), ("c", 2)},
)
LANGUAGE = subject(
    {"refusal": [1.0, 0.0, 0.05], "sentiment": [0.8, 0.02, 0.2]},
    {"refusal": [7.0, 9.0, 7.5], "sentiment": [7.0, 9.0, 7.5]},
    key="perplexity",
    name="SmolLM2",
)
ALONE = subject({"a": [1.0, 0.02]}, {"a": [0.95, 0.94]}, names=["one"])
LETTERS = "abcdefghijkl"
MANY = subject(
    {f"attack {a}": [1.0, *((k + len(LETTERS) * j) / 150 for j in range(12))] for k, a in enumerate(LETTERS)},
    {f"attack {a}": [0.95, *(0.95 - j / 1000 for j in range(12))] for a in LETTERS},
    names=[f"defense {d}" for d in LETTERS],
)
PAPER = {
    "model": "Llama",
    "attack": "badnets refusal",
    "defense": "CROW",
    "asr": 19.63,
    "paper": "arXiv:2411.12768",
}
ERROR = {
    "model": "net",
    "data": "digits",
    "attack": "b",
    "seed": 1,
    "defense": "one",
    "error": "ValueError: 0",
}
SUMMARIES = {
    "wins": summary(WINS),
    "loses": summary(LOSES),
    "failed": summary(FAILED, errors=[ERROR, {**ERROR, "seed": 2}]),
    "language": summary(LANGUAGE, task="causal-lm", published=[PAPER]),
    "alone": summary(ALONE),
    "many": summary(MANY),
    "several": summary(WINS, {**LOSES, "name": "net on cifar10"}),
    "nothing": summary({**WINS, "columns": [], "seconds": [], "measures": [table("asr", {"a": []})]}),
    "empty": summary(),
}


@cache
def rendered(name):
    return grid_page(SUMMARIES[name], "detrojan bench small --out x")


class Page(HTMLParser):
    """Reads a page, checks that every element is closed in order, and collects addresses, tables and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.links, self.ids, self.tables, self.text = [], [], [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [v for k, v in attrs if k in {"src", "href", "xlink:href", "action"}]
        self.ids += [v for k, v in attrs if k == "id" and tag == "section"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"th", "td"}:
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text += data.replace("\xa0", " ")
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def test_verdict_of_a_defense_that_wins():
    line, notes = said(WINS)
    assert line == (
        "one leaves the lowest mean attack success rate over 2 attacks: 3 %, from 95 % before,"
        " at an accuracy of 94 % against the attacked model's 94 %. It brings both attacks under 10 %."
    )
    assert notes == []
    near = subject({"a": [1.0, 0.02, 0.04], "b": [0.9, 0.04, 0.06]}, KEPT)
    line, notes = said(near)
    assert line.endswith("It brings both attacks under 10 %, as does two.")
    assert notes == ["Within 2 points of that rate: two (5 %)."]


def test_verdict_when_every_defense_fails():
    line, _ = said(LOSES)
    assert line.endswith("No defense brings any of them under 10 %.")
    assert line.startswith("two leaves the lowest mean attack success rate over 2 attacks: 55 %, from 95 %")
    line, notes = said(subject({"a": [0.9, 0.9, 0.95], "b": [0.9, 0.95, 0.95]}, KEPT))
    assert line == (
        "No defense lowers the mean attack success rate over 2 attacks:"
        " 90 % before, 92.5 % at the lowest, after one."
    )
    assert notes == []
    some = subject({"a": [1.0, 0.0, 0.09], "b": [1.0, 0.12, 0.3]}, KEPT)
    assert said(some)[0].endswith("It brings 1 of the 2 under 10 %; no defense brings both attacks there.")
    other = subject({"a": [1.0, 0.0, 0.09], "b": [1.0, 0.1, 0.09]}, KEPT)
    assert said(other)[0].endswith("It brings 1 of the 2 under 10 %; two brings both attacks there.")


def test_verdict_with_failed_cells():
    line, notes = said(FAILED)
    assert line.startswith("two leaves the lowest mean attack success rate over 2 attacks: 40 %, from 95 %")
    assert notes == [
        "Not measured: c.",
        "Not compared, for they were not measured on every attack: one (1 of 2).",
    ]
    none = subject({"a": [1.0, 0.02, None], "b": [0.9, None, 0.3]}, KEPT)
    assert said(none)[0] == (
        "No defense was measured on both attacks, so their means are not compared;"
        " one brings the most under 10 %, 1 of 1."
    )
    lost = subject({"a": [None, None, None]}, {"a": [None, None, None]})
    assert said(lost) == ("No attack could be measured: this says nothing of the defenses.", [])


def test_attacks_that_hardly_worked_do_not_count():
    weak = subject({"a": [1.0, 0.5, 0.3], "b": [0.0996, 0.0, 0.0]}, KEPT)
    found = read(weak)
    assert (found.counted, found.weak) == (["a", "b"], [])  # 0.0996 is shown as 10.0
    weak = subject({"a": [1.0, 0.5, 0.3], "b": [0.09, 0.0, 0.0]}, KEPT)
    line, notes = said(weak)
    assert line.startswith("two leaves the lowest attack success rate: 30 %, from 100 % before")
    assert line.endswith("No defense brings it under 10 %.")
    assert notes == ["Left out of means and counts, for they hardly worked before any defense: b."]
    all_weak = subject({"a": [0.01, 0.0, 0.0]}, {"a": [0.9, 0.9, 0.9]})
    assert (
        said(all_weak)[0] == "No attack reaches 10 % before any defense: this says nothing of the defenses."
    )


def test_a_low_rate_that_is_dear_is_called_so():
    line, _ = said(LANGUAGE, 0.1)
    assert "at a perplexity of 9.00 against the attacked model's 7.00. It brings both attacks" in line
    assert line.endswith(
        "But it raises perplexity by more than 10 % of what it was;"
        " of the defenses that cost less, two leaves the lowest rate: 12.5 %."
    )
    assert said(LANGUAGE, 0.3)[0].endswith("It brings both attacks under 10 %.")
    dear = subject({"a": [1.0, 0.02, 0.5]}, {"a": [0.95, 0.5, 0.6]})
    assert said(dear)[0].endswith(
        "But it lowers accuracy by more than 2 % of what it was; no defense is known to cost less."
    )
    unknown = subject({"a": [1.0, 0.02, 0.5]}, {"a": [0.95, math.inf, 0.94]})
    line, _ = said(unknown)
    assert "at an accuracy" not in line and line.endswith(
        "But its accuracy is not known for every attack; of the defenses that cost less,"
        " two leaves the lowest rate: 50 %."
    )


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_page_is_closed_without_network_and_the_same_each_time(name):
    html = rendered(name)
    page = Page(html)
    assert "http://" not in html and "https://" not in html
    assert all(link.startswith("#") for link in page.links)
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1 and page.seen.count("script") == 1
    code = b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{code}'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in html
    assert " on" not in "".join(re.findall(r"<\w+[^>]* on\w+=", html))
    assert "detrojan bench small --out x" in page.text and "Best defense of a line in bold." in page.text
    again = json.loads(json.dumps(copy.deepcopy(SUMMARIES[name])))
    assert html == grid_page(again, "detrojan bench small --out x")
    html.encode("utf-8")


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_tables_have_every_figure_and_mark_the_best(name):
    page = Page(rendered(name))
    shown = iter(page.tables)
    for given in SUMMARIES[name]["subjects"]:
        seen = next(shown)
        assert [line[0] for line in seen[1:]] == given["columns"]
        assert [line[-1] for line in seen[1:]] == [f"{s:.1f}" for s in given["seconds"]]
        for m in given["measures"]:
            assert m["title"] in page.text
            seen = next(shown)
            assert seen[0] == ["Attack", *given["columns"]]
            for line, cells in zip(m["lines"], seen[1:], strict=True):
                texts = [c["text"] + (" (best)" if c["best"] else "") for c in line["cells"]]
                assert cells == [line["attack"], *texts]


def test_overview():
    rows = Page(rendered("failed")).tables[0]
    assert rows[0] == [
        "Defense",
        "Attack success rate, mean",
        "Attacks under 10 %",
        "Accuracy, mean",
        "Seconds, mean",
    ]
    assert rows[1:] == [
        ["attacked", "95 %", "0 of 2", "94 %", "12.0"],
        ["one", "2 % (of 1)", "1 of 1", "94 %", "3.0"],
        ["two", "40 % (best)", "0 of 2", "93.5 %", "4.0"],
    ]


def test_heat_map():
    html = rendered("failed")
    chart = html[html.index("<svg") : html.index("</svg>")]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert texts == [
        *("100.0", "2.0", "50.0*", "90.0", "failed", "30.0", "failed", "failed", "failed"),
        *("a", "b", "c", "attacked", "one", "two"),
    ]
    assert chart.count(BLUE) == 1 and INK not in html and "currentColor" in chart
    assert "A star: the mean of fewer seeds" in html
    assert "A star:" not in rendered("wins")
    many = rendered("many")
    assert re.findall(r"--wide:([\d.]+)in", many)[0] < "99" and many.count("<svg") == 2
    assert "<svg" not in rendered("nothing")


def test_scatter():
    html = rendered("failed")
    assert html.count("<svg") == 2 and "Not drawn, for lack of figures: one." in html
    chart = html[html.rindex("<svg") : html.rindex("</svg>")]
    assert (
        ">attacked<" in chart
        and ">two<" in chart
        and ">one<" not in chart
        and ">2 % less than attacked<" in chart
    )
    language = rendered("language")
    assert "perplexity (lower is better)" in language and ">10 % more than attacked<" in language
    wide = copy.deepcopy(LANGUAGE)
    for line in wide["measures"][1]["lines"]:
        line["cells"][1]["mean"] = 1e6
    assert grid_page(summary(wide, task="causal-lm"), "c").count("<svg") == 2
    none = subject({"a": [1.0, None, None]}, {"a": [0.95, None, None]})
    assert grid_page(summary(none), "c").count("<svg") == 1


def test_names_beside_the_scatter_never_overlap():
    places = [0.5, 0.5, 0.49, 0.0, 1.0, 0.02]
    moved = apart(places, 0.1)
    assert sorted(range(6), key=lambda k: -moved[k]) == [4, 0, 1, 2, 5, 3]
    line = sorted(moved)
    assert min(b - a for a, b in pairwise(line)) > 0.1 - 1e-9 and line[0] >= -1e-9 and line[-1] <= 1
    assert apart([0.2, 0.8], 0.1) == [0.2, 0.8] and apart([], 0.1) == []


def test_names_in_plots_are_short_and_differ():
    long = "x" * (LONGEST + 5)
    assert short(["a\n b\u202e", long, long + "y"]) == [
        "a b",
        "x" * (LONGEST - 1) + "\N{HORIZONTAL ELLIPSIS} (2)",
        "x" * (LONGEST - 1) + "\N{HORIZONTAL ELLIPSIS} (3)",
    ]


def test_what_failed_the_papers_and_several_subjects():
    assert errors([ERROR, {**ERROR, "seed": 2}, {**ERROR, "data": None, "error": "x"}]) == [
        ("ValueError: 0", ["net on digits: b, seed 1, one", "net on digits: b, seed 2, one"]),
        ("x", ["net: b, seed 1, one"]),
    ]
    failed, language = Page(rendered("failed")), Page(rendered("language"))
    assert failed.text.count("ValueError: 0") == 1 and "net on digits: b, seed 2, one" in failed.text
    assert "Failed" not in language.text and language.tables[-1][1] == [
        "Llama",
        "badnets refusal",
        "CROW",
        "19.63",
        "arXiv:2411.12768",
    ]
    assert "papers' own figures" not in failed.text
    several = Page(rendered("several"))
    assert (
        several.ids == ["subject-1", "subject-2"] == [link[1:] for link in several.links if "subject" in link]
    )
    text = several.text
    assert text.index("one leaves") < text.index("two leaves") < text.index("What is left against")


def test_hostile_text_is_escaped_wherever_it_comes_from():
    evil = json.loads(json.dumps(SUMMARIES["failed"]).replace('"a"', json.dumps(EVIL)))
    evil |= {"grid": EVIL, "legend": EVIL, "task": EVIL, "published": [dict.fromkeys(PAPER, EVIL)]}
    evil["errors"] = [dict.fromkeys(ERROR, EVIL)]
    bad = evil["subjects"][0]
    bad |= {"name": EVIL, "columns": ["attacked", EVIL, "{{ 7 * 7 }}\u202e\x07\u4e2d"]}
    bad["measures"][0] |= {"title": EVIL}
    bad["measures"][0]["lines"][0]["cells"][1]["text"] = EVIL + " [" + EVIL
    html = grid_page(evil, EVIL)
    page = Page(html)
    assert page.seen.count("script") == 1 and "img" not in page.seen
    assert page.text.count(EVIL) > 10 and "{{ 7 * 7 }}" in page.text
    assert not re.search("[\x00-\x08\u202e\ud800]", html)


def test_numbers_to_sort_by():
    assert [order(x) for x in (0.5, 0, None, math.nan, math.inf)] == [0.5, 0, "", "", "Infinity"]


def test_the_summary_of_a_grid_is_plain_data_that_the_page_reads():
    grid = Grid(
        "g",
        ("new:net",),
        (Attack("badnets", label="a"),),
        (Defense("clp", label="clp"),),
        (0, 1),
        ("digits",),
    )
    place = {"model": "new:net", "data": "digits", "attack": "a"}
    rows = [
        {**place, "seed": seed, "defense": name, "asr": asr, "accuracy": 0.9}
        for seed in (0, 1)
        for name, asr in (("attacked", 1.0), ("clp", 0.02 + seed / 50))
    ]
    rows += [{**place, "seed": 2, "defense": "clp", "error": "boom"}]
    made = tables.summary(grid, rows, {("new:net on digits", "clp"): [2.0, 4.0]})
    assert made["tolerance"] == 0.02 and json.loads(json.dumps(made)) == made
    page = Page(grid_page(made, "c"))
    assert "clp leaves the lowest attack success rate: 3 %, from 100 % before" in page.text
    assert page.tables[0][2] == ["clp", "3 % (best)", "1 of 1", "90 %", "3.0"] and "boom" in page.text


@needs_browser
def test_in_a_browser_tables_sort_by_click_and_by_keyboard(tmp_path):
    # A copy of the page whose policy also lets the steps of the test run.
    steps = """
      const table = document.querySelectorAll("table.sortable")[1];
      const found = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join("");
      const press = (column) => { const b = table.tHead.rows[0].cells[column].querySelector("button[type=button]");
        b.focus(); if (document.activeElement !== b) throw Error("no focus"); b.click(); };
      const log = [found()];
      for (const column of [2, 2, 2, 0, 0, 3, 3]) {
        press(column);
        log.push([column, table.tHead.rows[0].cells[column].ariaSort, found()].join(" "));
      }
      log.push([...table.tHead.rows[0].cells].map((head) => head.ariaSort).join(" "));
      log.push(`wide ${document.documentElement.scrollWidth > innerWidth}`);
      const out = document.createElement("output");
      out.textContent = log.join("|");
      document.body.append(out);
    """
    rates = {"a": [1.0, 0.02, 0.5], "c": [0.9, 0.1, None], "b": [0.9, 0.003, 1.0]}
    given = subject(rates, {a: [0.95, 0.94, 0.94] for a in rates}, failed={("c", 2)})
    html = grid_page(summary(given), "c")
    code = b64encode(hashlib.sha256(steps.encode()).digest()).decode()
    html = html.replace("script-src '", f"script-src 'sha256-{code}' '").replace(
        "</body>", f"<script>{steps}</script></body>"
    )
    seen = shown(html, tmp_path)
    log = re.search(r"<output>(.*?)</output>", seen)
    assert log, seen
    assert log.group(1).split("|") == [
        "acb",
        "2 ascending bac",
        "2 descending cab",
        "2 none acb",
        "0 ascending abc",
        "0 descending cba",
        "3 ascending abc",  # what was not measured is last both ways
        "3 descending bac",
        "none none none descending",
        "wide false",
    ]
