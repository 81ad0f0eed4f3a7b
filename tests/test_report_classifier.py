"""The report and the model card of classifiers, on manifests made by hand."""

import base64
import copy
import io
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from detrojan.report.card import model_card
from detrojan.report.classes import LISTED, class_chart, listed, per_class, scored, singled_out
from detrojan.report.curves import INK, LINES
from detrojan.report.page import page, verdict
from detrojan.report.pictures import GAP, inline, trigger_grid
from detrojan.report.words import Stage, stages, value

EVIL = '<script>alert("x")</script><img src=x>$\\frac$'
NAMES = ["airplane", "cat", "dog"]
CHART = "<svg "
DOT = "data:image/png;base64,iVBORw0KGgo="


def result(accuracy, asr=None, recovery=None, der=None, **changes):
    """Return a ClassifierResult as JSON data; `asr` None is a measurement without a known attack."""
    return {
        "model": "m",
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.01, accuracy + 0.01],
        "n_clean": 1000,
        "n_triggered": 0 if asr is None else 900,
        "asr": asr,
        "asr_interval": None if asr is None else [max(0.0, asr - 0.01), min(1.0, asr + 0.01)],
        "recovery_accuracy": recovery,
        "recovery_interval": None if recovery is None else [recovery, recovery],
        "der": der,
        "reference": None,
        "classes": NAMES,
        "per_class": [accuracy, None, 0.5],
        **changes,
    }


def cleaned(before, after, **changes):
    return {
        "command": "detrojan clean org/model --out x",
        "kind": "clean",
        "task": "image",
        "model": "org/model",
        "method": {"defense": "ulrl", "paper": "arXiv:2405.14781", "preset": None},
        "options": {"alpha": 0.7},
        "samples": 600,
        "data": "cifar10",
        "measured_on": "the test part of the data",
        "seed": 0,
        "seconds": 12.34,
        "inputs": {"model.safetensors": "ab" * 32},
        "notes": {
            "evidence": [9.0, 1.0, 1.1],
            "scores": [53.2, -0.7, 0.0],
            "suspicious": [0],
            "threshold": 3.5,
        },
        "before": before,
        "after": after,
        "pictures": DOT,
        "attack": {"trigger": {"name": "badnets", "options": {}}, "mode": "all-to-one", "target": 0},
        "versions": {"python": "3.11"},
        "outputs": {"config.json": "cd" * 32},
        **changes,
    }


CLEAN = cleaned(result(0.93, 0.97, 0.02), result(0.92, 0.034, 0.85, 0.963))
ATTACK = {
    **cleaned(
        None, result(0.92, 0.99, 0.0), kind="attack", task="text", notes=None, pictures=None, attack=None
    ),
    "method": {"attack": "word"},
    "trigger": {"name": "word", "phrases": ["cf"], "place": "random", "use": "all"},
    "mode": "all-to-all",
    "target": 0,
}
DEMO = {
    "command": "detrojan demo image",
    "kind": "demo",
    "task": "image",
    "model": "new:preact-resnet8",
    "notes": CLEAN["notes"],
    "pictures": DOT,
    "stages": {
        "attacked": {**result(0.93, 0.97, 0.02), "seconds": 60.0},
        "finetune": {**result(0.93, 0.9, 0.1, 0.535), "seconds": 5.0},
        "ulrl": {**result(0.92, 0.02, 0.85, 0.97), "seconds": 9.0},
    },
}
KINDS = {"clean": CLEAN, "attack": ATTACK, "demo": DEMO}


class Tags(HTMLParser):
    """Collects the elements and the text of a page, and checks that every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.sources, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [v for k, v in attrs if k in {"src", "href", "action"} and tag != "use"]
        if tag not in {"meta", "img", "path", "use", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in {"path", "use", "rect"}:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_closed_page_without_network(kind):
    html = page(KINDS[kind])
    tags = Tags(html)
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert tags.sources == ([] if kind == "attack" else [DOT])
    assert ("img-src data:" in html) is (kind != "attack")
    body = html[html.index("<body>") :]
    for word in ("prompt", "perplexity", "Layer consistency", "Answers to", "template"):
        assert word not in body
    assert html == page(copy.deepcopy(KINDS[kind]))
    assert model_card(KINDS[kind]) == model_card(copy.deepcopy(KINDS[kind]))


def test_verdict_of_a_defense():
    line, notes = verdict(CLEAN)
    assert line == (
        "Attack success rate fell from 97 % to 3.4 % (95 % interval 2.4 to 4.4 %) after ULRL. "
        "Accuracy fell from 93 % to 92 % (95 % interval 91 to 93 %) after ULRL."
    )
    assert notes == [
        "3.4 % of triggered samples are classified as the target after ULRL, 85 % as their own class.",
        "An unknown trigger other than the measured one may remain: none was looked for.",
    ]
    still = verdict(cleaned(result(0.93, 0.97), result(0.93, 0.12)))
    assert "Accuracy stayed at 93 %" in still[0]
    assert still[1][0] == (
        "The backdoor is still there after ULRL: 12 % of triggered samples are classified as the target."
    )
    weak = verdict(cleaned(result(0.9, 0.03), result(0.9, 0.0)))[1]
    assert any("hardly worked before (3 %)" in note for note in weak)


def test_verdict_of_an_attack_and_of_the_demo():
    line, notes = verdict(ATTACK)
    assert line == (
        "Attack success rate is 99 % (95 % interval 98 to 100 %) after the attack. "
        "Accuracy is 92 % (95 % interval 91 to 93 %) after the attack."
    )
    assert notes == ["This model carries a backdoor that was planted on purpose: use it for tests alone."]
    assert any(
        "seldom classified as the target" in n for n in verdict({**ATTACK, "after": result(0.9, 0.0)})[1]
    )
    line, notes = verdict(DEMO)
    assert "90 % (95 % interval 89 to 91 %) after plain fine-tuning; 2 %" in line
    assert "after ULRL, from 97 % before. Accuracy is 93 %" in line
    assert next(n for n in notes if "still there" in n).startswith(
        "The backdoor is still there after plain fine"
    )


def test_without_a_known_attack_only_accuracy_is_shown():
    manifest = cleaned(result(0.93), result(0.915), attack=None, pictures=None)
    line, notes = verdict(manifest)
    assert line == (
        "No trigger was measured (no attack was known); only accuracy is shown: 93 % before, 91.5 % after ULRL."
    )
    assert notes == ["No trigger was measured: nothing here says whether a backdoor remains."]
    assert "The trigger</h2>" not in page(manifest) and "as the target" not in page(manifest)
    assert "No trigger was measured" in model_card(manifest)


@pytest.mark.parametrize(
    ("accuracy", "asr", "recovery", "lost", "misled"),
    [
        (0.91, 0.0, 0.9, False, False),  # 2 points on the dot
        (0.9, 0.0, 0.45, True, False),  # half of the accuracy on the dot
        (0.9, 0.04, 0.44, True, True),
        (0.93, 0.6, 0.3, False, False),  # the target explains it
        (0.93, 0.0, None, False, False),
    ],
)
def test_verdict_names_what_makes_a_low_rate_worth_less(accuracy, asr, recovery, lost, misled):
    notes = " ".join(verdict(cleaned(result(0.93, 0.97, 0.02), result(accuracy, asr, recovery)))[1])
    assert ("Accuracy fell by" in notes) is lost
    assert ("it still misleads the model" in notes) is misled
    if misled:
        assert "Accuracy fell by 3 points after ULRL" in notes
        assert "Only 44 % of triggered samples are classified right after ULRL, against 90 %" in notes


@pytest.mark.parametrize("manifest", [*KINDS.values(), cleaned(result(0.9, 0.9), result(0.9, 0.0, 0.9))])
def test_no_verdict_calls_a_model_clean_or_safe(manifest):
    line, notes = verdict(manifest)
    assert not re.search(r"\b(clean|safe|removed|secure)\b", " ".join([line, *notes]), re.IGNORECASE)


def test_table_of_measures():
    text = Tags(page(CLEAN)).text
    for label in ("Accuracy", "Recovery accuracy", "Defense effectiveness (DER)", "Triggered samples"):
        assert f"\n{label}" in text
    assert value(stages(CLEAN)[1].result, "recovery_accuracy") == "85 % (85 to 85 %)"
    assert value(stages(CLEAN)[1].result, "der") == "96.3 %"
    assert "| Attack success rate (ASR) | 97 % (96 to 98 %) | 3.4 % (2.4 to 4.4 %) |" in model_card(CLEAN)


def test_hostile_text_is_escaped_wherever_it_comes_from():
    evil = cleaned(*(result(0.9, 0.1, 0.5, classes=[EVIL, "a\u202eb\x07", "{{ 7 * 7 }}"]) for _ in "ab"))
    evil["attack"] = {"trigger": {"name": EVIL, "phrases": [EVIL]}, "mode": EVIL, "target": 0}
    evil |= {"model": EVIL, "notes": {**evil["notes"], EVIL: EVIL}}
    html = page(evil)
    tags = Tags(html)
    assert "script" not in tags.seen and tags.seen.count("img") == 1
    assert EVIL in tags.text and "{{ 7 * 7 }}" in tags.text and "ab" in tags.text
    assert not re.search("[\x00-\x08\u202e]", html)
    card = model_card(evil)
    assert "<script" not in re.sub(r"`[^`]*`", "", card)


@pytest.mark.parametrize(
    "picture",
    [
        "https://example.org/x.png",
        "javascript:alert(1)",
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,AAAA"onerror="alert(1)',
        "data:image/png;base64,AAAA\n",
        " data:image/png;base64,AAAA",
        ["data:image/png;base64,AAAA"],
        {"a": 1},
        7,
    ],
)
def test_a_hostile_picture_is_ignored(picture):
    assert inline(picture) is None
    html = page({**CLEAN, "pictures": picture})
    assert (
        "<img" not in html and "img-src" not in html and "onerror" not in html and "example.org" not in html
    )


def test_a_large_picture_is_not_cut():
    large = "data:image/png;base64," + "A" * 8000
    assert f'src="{large}"' in page({**CLEAN, "pictures": large})


def test_chart_only_when_there_are_scores():
    assert page(CLEAN).count(CHART) == 1
    assert "Singled out as suspicious: 0 (airplane)." in page(CLEAN)
    assert "The measured trigger draws class 0 (airplane), which is among them." in model_card(CLEAN)
    for notes in (None, {}, [], "x", {"scores": None}, {"scores": []}, {"other": 1}):
        html = page({**CLEAN, "notes": notes})
        assert CHART not in html and "Which class stands out" not in html
    assert "notes / other" in page({**CLEAN, "notes": {"other": 1}})
    assert "notes / scores" not in page(CLEAN)
    assert CHART in page({**CLEAN, "before": None, "after": None})


def test_scan():
    notes = {**CLEAN["notes"], "scores": [math.inf, -0.7, 0.0], "classes": ["a", "b", EVIL]}
    manifest = {"kind": "scan", "task": "image", "model": "m", "command": "c", "files": [], "notes": notes}
    assert verdict(manifest)[0] == "Singled out as suspicious: 0 (a)."
    assert verdict(manifest)[1][0] == "Nothing was found in the files."
    html = page({**manifest, "files": [EVIL]})
    assert html.count(CHART) == 1 and EVIL in Tags(html).text and "infinite" in html
    assert "Nothing was" not in html and "detrojan.json" not in html and "detrojan.json" in page(CLEAN)
    empty = {**manifest, "notes": {k: [] for k in notes}}
    assert verdict(empty)[0].startswith("The classes were not looked at") and CHART not in page(empty)


def test_scores_in_words():
    found = scored(CLEAN["notes"], NAMES)
    assert [c.number for c in found] == [0, 2, 1]
    assert listed(found)[0] == ("0 (airplane)", "9", "53.20", "suspicious")
    assert singled_out(found, 1)[1] == "The measured trigger draws class 1 (cat), which is not among them."
    none = scored({"scores": [0.1, 0.2]}, [])
    assert singled_out(none) == ["No class was singled out as suspicious."]
    assert singled_out(none, 1) == [
        "No class was singled out as suspicious, though the measured trigger draws class 1."
    ]
    assert singled_out([], 0) == []


def test_null_scores_are_infinite_and_clipped():
    notes = {
        "evidence": [2.0, 5.0, 2.0, 1.0, None],
        "scores": [0.0, None, 0.0, None, None],
        "suspicious": [1],
    }
    found = scored(notes, NAMES)
    assert {c.number: c.score for c in found} == {0: 0, 1: math.inf, 2: 0, 3: -math.inf, 4: math.inf}
    assert {line[0]: line[2] for line in listed(found)}["3"] == "-infinite"
    html = page({**CLEAN, "notes": notes})
    Tags(html)
    assert "A bar with an arrow is infinite." in html and "nan" not in class_chart(found, None).lower()
    alone = scored({"scores": [math.inf, -math.inf, math.nan, "x"]}, [])
    assert [c.score for c in alone] == [math.inf, math.inf, math.inf, -math.inf]
    assert class_chart(alone, 3.5).endswith("</svg>")


def test_chart():
    found = scored(CLEAN["notes"], ["airplane", "a very long name of a class", "$\\frac$"])
    chart = class_chart(found, 3.5)
    assert chart.startswith(CHART) and chart == class_chart(found, 3.5)
    assert INK not in chart and "currentColor" in chart and "<style" not in chart
    assert all(colour in chart for colour, _, _ in LINES.values())
    for text in (">0 airplane<", ">1 a very long nam\N{HORIZONTAL ELLIPSIS}<", ">2<", ">threshold 3.5<"):
        assert text in chart
    assert "threshold" not in class_chart(found, None)
    assert class_chart([], 3.5) == ""


def test_very_many_classes():
    count = 3 * LISTED
    many = result(0.9, classes=[], per_class=[1.0] * count)
    fallen = {**many, "per_class": [1.0] * (count - 1) + [0.2]}
    lines = per_class([Stage("before", "before", many), Stage("after", "after", fallen)], [])
    assert len(lines) == LISTED and lines[-1] == (str(count - 1), ["100 %", "20 %"])
    notes = {"scores": list(range(count)), "suspicious": [], "threshold": 3.5}
    html = page(cleaned(many, fallen, notes=notes, attack=None))
    assert f"The 24 highest scores of {count} classes." in html and html.count(">other<") == 1
    assert f"The {LISTED} highest of {count}." in html
    assert f"{LISTED} of {count} classes, those whose accuracy fell most" in html


@pytest.mark.parametrize("after", [None, dict.fromkeys(result(0.5)), result(0.9, 0.2)])
def test_nulls_everywhere(after):
    for each in (dict.fromkeys(CLEAN) | {"task": "image"}, cleaned(None, None), {"task": "text"}):
        for before in (None, {}, dict.fromkeys(result(0.5)), result(0.9, 0.9)):
            full = {**each, "before": before, "after": after}
            Tags(page(full))
            assert model_card(full).startswith("---\ntags: [detrojan]\n")


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_grid_pixels():
    images = torch.tensor([[[[0, 255], [51, 102]]], [[[0, 0], [0, 0]]]], dtype=torch.uint8)
    triggered = torch.tensor([[[[0.0, 1.0], [0.3, 0.3]]], [[[1.0, 0.0], [0.0, 0.05]]]])
    uri = trigger_grid(images, triggered)
    assert inline(uri) == uri == trigger_grid(images, triggered)
    grid = decoded(uri)
    assert grid.size == (2 * 96 + GAP, 3 * 96 + 2 * GAP)  # 2 x 2 pixels, each 48 wide

    def shades(column, row):
        x, y = column * (96 + GAP), row * (96 + GAP)
        return [grid.getpixel((x + 95 * dx, y + 95 * dy)) for dy in (0, 1) for dx in (0, 1)]

    def grey(*values):
        return [(v, v, v, 255) for v in values]

    assert shades(0, 0) == grey(0, 255, 51, 102)
    assert shades(0, 1) == grey(0, 255, 76, 76)  # 0.3 * 255 = 76.5, and halves go to the even number
    assert shades(0, 2) == grey(128, 128, 255, 0)  # 0.5 + 5 * 0.1 and 0.5 - 5 * 0.1
    assert shades(1, 2) == grey(255, 128, 128, 191)  # 0.5 + 5 * 0.05 = 0.75
    assert grid.getpixel((97, 0))[3] == grid.getpixel((0, 97))[3] == 0  # the gaps
    assert grid.getpixel((47, 0)) == grey(0)[0] and grid.getpixel((48, 0)) == grey(255)[0]


@pytest.mark.parametrize(("side", "tile"), [(1, 96), (28, 84), (32, 96), (64, 128), (96, 96), (224, 112)])
def test_grid_tiles_are_about_96_pixels(side, tile):
    images = torch.zeros(1, 3, side, side)
    assert decoded(trigger_grid(images, images)).size == (tile, 3 * tile + 2 * GAP)


def test_grid_of_many_channels_shows_the_first():
    images = torch.rand(2, 5, 8, 8)
    assert trigger_grid(images, images) == trigger_grid(images[:, :1], images[:, :1])
    strange = torch.full((1, 3, 8, 8), math.nan)
    assert decoded(trigger_grid(strange, strange * 0 - 7)).getpixel((0, 0)) == (0, 0, 0, 255)


def test_model_card_says_how_to_load():
    card = model_card(CLEAN)
    assert card.startswith("---\ntags: [detrojan]\nbase_model: org/model\n---\n")
    assert 'model = AutoModelForImageClassification.from_pretrained("path/to/this/directory")' in card
    assert "import detrojan" not in card and "CausalLM" not in card and "answers" not in card
    assert "AutoModelForSequenceClassification" in model_card(ATTACK) and "AutoTokenizer" in model_card(
        ATTACK
    )
    zoo = model_card({**CLEAN, "architecture": "preact-resnet18"})
    assert "import detrojan.models.zoo  # registers the architecture\n" in zoo
    module = model_card({**CLEAN, "architecture": "module"})
    assert "from safetensors.torch import load_model" in module and "transformers" not in module
