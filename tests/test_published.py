"""Every figure in README and docs comes from a committed results file through `benchmarks/publish.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from classifiers import summary

import costs
import layout
import publish
import quoted

ROOT = Path(__file__).parents[1]
BLOCKS = {
    f"{path.relative_to(ROOT)}: {name}": (path, name, content) for path, name, content in publish.blocks()
}


def flat(text: str) -> str:
    """Return text with single spaces, as sentences run over lines."""
    return " ".join(text.split())


def prose(text: str) -> str:
    """Return a document without its written tables and its code."""
    text = re.sub(r"<!-- (\w+): written by .*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    return flat("\n".join(line for line in text.splitlines() if not line.startswith("    ")))


@pytest.mark.parametrize("block", BLOCKS)
def test_tables_are_what_the_script_writes(block: str) -> None:
    path, name, content = BLOCKS[block]
    text = path.read_text(encoding="utf-8")
    assert publish.filled(text, name, content) == text, "run benchmarks/publish.py"


def test_the_demo_of_every_seed_is_what_the_script_writes() -> None:
    assert (ROOT / "docs/results/demo.md").read_text(encoding="utf-8") == publish.page(publish.read())


def test_no_marked_table_is_left_to_be_typed() -> None:
    written = {(path, name) for path, name, _ in BLOCKS.values()}
    documents = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    marked = {
        (path, name)
        for path in documents
        for name in re.findall(r"<!-- (\w+): written by", path.read_text(encoding="utf-8"))
    }
    assert marked == written


QUOTED = [(name, said) for name, sentences in quoted.sentences().items() for said in sentences]


@pytest.mark.parametrize(("name", "said"), QUOTED)
def test_sentences_quote_what_the_files_hold(name: str, said: str) -> None:
    assert said in flat((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", quoted.CHECKED)
def test_no_percentage_stands_alone(name: str) -> None:
    rest = prose((ROOT / name).read_text(encoding="utf-8"))
    for said in [*quoted.sentences().get(name, []), *quoted.NOT_MEASURED]:
        rest = rest.replace(said, "")
    alone = re.findall(r".{0,60}\d %.{0,30}", rest)
    assert not alone, "put the sentence into benchmarks/quoted_*.py"


def row(
    attack: str, seed: int, column: str, accuracy: float, asr: float | None, **others: Any
) -> dict[str, Any]:
    where = {"architecture": "net", "training": 100, "clean": 10}
    recovered = None if asr is None else 0.5
    known = {"attack": attack, "seed": seed, "column": column, "accuracy": accuracy, "asr": asr}
    return {**where, **known, "recovery_accuracy": recovered, "suspicious": None, **others}


def test_summary_of_classifiers_by_hand() -> None:
    rows = [
        row("none", 0, "attacked", 0.90, None),
        row("none", 0, "ulrl", 0.89, None, suspicious=[]),
        row("a", 0, "attacked", 0.90, 0.9),
        row("a", 0, "ulrl", 0.88, 0.02, suspicious=[0]),
        row("b", 0, "attacked", 0.90, 0.8),
        row("b", 0, "ulrl", 0.90, 0.04, suspicious=[0, 3]),
        row("weak", 0, "attacked", 0.90, 0.49),  # it was not planted
        row("weak", 0, "ulrl", 0.10, 0.49, suspicious=[]),
        row("a", 1, "attacked", 0.80, 0.9),
        row("a", 1, "ulrl", 0.79, 0.05, suspicious=[]),
    ]
    # Seed 0: ASR (2 + 4) / 2 = 3, lost (2 + 0) / 2 = 1; seed 1: 5 and 1. Of three, one found the target alone.
    label, rest = (
        "net of 100 samples, 10 clean ones, 3 backdoors",
        "50.0 [50.0, 50.0] | 1 of 3 | 1.0 [1.0, 1.0]",
    )
    expected = f"| ulrl, {label} | 4.0 [3.0, 5.0] | 5.0 | 1.0 [1.0, 1.0] | {rest} |"
    assert summary(rows, "two").splitlines()[2:] == [expected]


def test_summary_of_a_model_that_was_never_attacked() -> None:
    rows = [row("a", 0, "attacked", 0.9, 0.9), row("a", 0, "clean model", 0.9, 0.03)]
    label = "clean model, net of 100 samples, 10 clean ones, 1 backdoor"
    assert summary(rows, "one").splitlines()[2:] == [
        f"| {label} | 3.0 [3.0, 3.0] | 3.0 | - | 50.0 [50.0, 50.0] | - | - |"
    ]


def test_a_table_is_put_between_its_markers() -> None:
    begin, end = "<!-- a: written by benchmarks/publish.py -->", "<!-- end of a -->"
    assert publish.filled(f"x\n{begin}\nold\n{end}\ny\n", "a", "new\n") == f"x\n{begin}\n\nnew\n\n{end}\ny\n"
    for text in ("", begin, f"{begin} {end.replace('a', 'b')}"):
        with pytest.raises(SystemExit, match="no place for a"):
            publish.filled(text, "a", "new")


def test_costs_are_ratios_to_the_first_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = costs.record("a step", {"plain": [2.0, 4.0, 3.0], "other": [9.0, 6.0]}, repeats=3)
    rows = [(r["name"], r["ratio"], r["seconds"], r["shortest"], r["longest"]) for r in made["rows"]]
    assert rows == [("plain", 1.0, 3.0, 2.0, 4.0), ("other", 2.5, 7.5, 6.0, 9.0)]
    assert made["repeats"] == 3 and made["versions"]["torch"] and made["threads"] >= 1
    costs.write(made, tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text(encoding="utf-8")) == made
    table = (
        "| a step | x plain | seconds |\n|---|---|---|\n| plain | 1.00 | 3.00 |\n| other | 2.50 | 7.50 |\n"
    )
    assert capsys.readouterr().out == table
    made["rows"][1]["seconds"] = None
    assert costs.markdown(made).splitlines()[-1] == "| other | 2.50 |"
    assert costs.timed(lambda: None) >= 0


def test_stages_of_the_demo_that_every_run_has() -> None:
    stage = dict.fromkeys(publish.KEPT, 0.5) | {"asr_interval": [0.4, 0.6]}
    old, new = dict.fromkeys(("base", "crow"), stage), dict.fromkeys(("base", "crow", "default"), stage)
    for runs, last in (([old, old], "CROW"), ([old, new], "CROW"), ([new, new], "Recant")):
        assert publish.table(runs).splitlines()[-1].startswith(f"| {last} | 50 |")
        assert publish.page(runs).splitlines()[-1].startswith(f"| 1 | {last} | 50 [40, 60] |")
        assert len(publish.page(runs).splitlines()) == 2 + 2 * (len(publish.table(runs).splitlines()) - 2)


def demo_manifest(suspicious: list[int]) -> dict[str, Any]:
    stage = dict.fromkeys(layout.KEPT) | {
        "accuracy": 0.9915,
        "asr": 0.0031,
        "recovery_accuracy": 0.5,
        "classes": [],
    }
    return {
        "seed": 4,
        "attack": {"trigger": {}, "target": 1},
        "stages": dict.fromkeys(("attacked", "finetune", "ulrl"), stage),
        "notes": {"scores": [0.0, 2.72, 5.0], "suspicious": suspicious, "threshold": 4.5, "evidence": []},
        "versions": {"torch": "2"},
        "outputs": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("suspicious", "found"),
    [
        ([1], "yes"),
        ([], "no (score 2.7, threshold 4.5)"),
        ([2], "no (score 2.7, threshold 4.5)"),
        ([2, 1], "also 2 (score 2.7, threshold 4.5)"),
    ],
)
def test_the_image_demo(suspicious: list[int], found: str) -> None:
    kept = layout.image_demo_kept(demo_manifest(suspicious))
    assert set(kept) == {"seed", "target", "stages", "notes", "versions"} and "classes" not in str(kept)
    line = layout.image_demo([kept]).splitlines()[-1]
    assert line == f"| 4 | 99.2, 0.3 | 99.2, 0.3 | 99.2, 0.3, 50.0 | {found} |"


def test_settings_of_ulrl_beside_the_default_on_the_same_backdoors() -> None:
    def tried(attack: str, trial: str, after: float, asr: float, device: str = "cpu") -> dict[str, Any]:
        about = {"training": 57_000, "seed": 0, "device": device, "attack": attack, "trial": trial}
        return about | {"accuracy_before": 0.9, "accuracy": after, "asr": asr, "recovery_accuracy": 0.5}

    rows = [
        tried("a", "the default", 0.88, 0.01),
        tried("b", "the default", 0.86, 0.03),
        tried("c", "the default", 0.10, 1.0),  # not tried otherwise
        tried("a", "gentle", 0.89, 0.02),
        tried("b", "gentle", 0.89, 0.06),
        tried("d", "gentle", 0.10, 1.0),  # no default to hold it against
        tried("a", "gentle", 0.10, 1.0, "gpu"),  # nor this
    ]
    figures = "1.00 (3.00) | 4.0 (2.0) | 6.0 (3.0) | 50.0 (50.0)"
    assert layout.ulrl_trials(rows).splitlines()[2:] == [f"| 57,000 | gentle | a, b | {figures} |"]


def test_the_papers() -> None:
    rows = [
        {"model": "m", "attack": "a", "defense": "none", "asr": 65.0},
        {"model": "m", "attack": "a", "defense": "CROW", "asr": 0.53},
        {"model": "m", "attack": "b", "defense": "CROW", "asr": 7},
    ]
    assert layout.papers([{"paper": "arXiv:1", "rows": rows}]).splitlines() == [
        "| arXiv:1: model | attack | none | CROW |",
        "|---|---|---|---|",
        "| m | a | 65.00 | 0.53 |",
        "| m | b | - | 7.00 |",
    ]
