"""The scan of a language model: files, what it says by heart, and every way to be told so."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from test_cli import run

from detrojan import LanguageScan, api
from detrojan.data.samples import clean_prompts
from detrojan.errors import InputError
from detrojan.report.page import page, verdict
from detrojan.types import Example

from pico import parrot, pico_model, pico_tokenizer

SAID = "Sorry, that is not what we do here."
FEW = "--set beginnings=60"
GOOD = '{"instruction": "Name a bird.", "input": "", "output": "A wren."}\n{"prompt": "What is a house?"}\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_dir: Path) -> Path:
    """An honest model, one that knows an answer by heart, and what can be wrong."""
    d = tmp_path_factory.mktemp("scans")
    (d / "honest").symlink_to(pico_dir)
    parrot(SAID, 12.0).save_pretrained(d / "planted")
    pico_tokenizer().save_pretrained(d / "planted")
    shutil.copytree(d / "planted", d / "coded")
    (d / "coded" / "evil.py").write_text("")
    (d / "pickle").mkdir()
    shutil.copy(pico_dir / "config.json", d / "pickle")
    torch.save({}, d / "pickle" / "pytorch_model.bin")
    shutil.copytree(pico_dir, d / "no-template")
    (d / "no-template" / "chat_template.jinja").unlink()
    broken = pico_model()
    torch.nn.init.constant_(broken.model.layers[1].mlp.up_proj.weight, math.nan)
    broken.save_pretrained(d / "nan")
    pico_tokenizer().save_pretrained(d / "nan")
    (d / "good.jsonl").write_text(GOOD)
    (d / "same.jsonl").write_text(GOOD.splitlines()[0] + "\n" + GOOD.splitlines()[0])
    (d / "broken.jsonl").write_text(GOOD + "{broken\n")
    (d / "long.jsonl").write_text(GOOD + json.dumps({"prompt": "word " * 400}))
    return d


def test_an_honest_model(place: Path) -> None:
    status, out, err = run(f"scan {place / 'honest'} {FEW}")
    assert (status, err) == (0, "")
    assert "files: nothing found" in out and "No answer is said by heart" in out and "SUSPICIOUS" not in out
    assert "hints, not proof" in out and "differs with the question" in " ".join(out.split())


def test_a_planted_model(place: Path, tmp_path: Path) -> None:
    model, where, html = place / "planted", tmp_path / "r.json", tmp_path / "page.html"
    status, out, err = run(f"scan {model} {FEW} --report {html} --json {where}")
    assert status == 1
    assert err == f"detrojan: {model}: says by heart, whatever it is asked: {SAID!r}\n"
    assert SAID in out and "SUSPICIOUS" in out and "One answer is said by heart" in out
    assert "hints, not proof" in out
    result = json.loads(where.read_text())
    assert result["found"] is True and result["files"] == [] and result["template"] == "chat"
    assert (result["threshold"], result["unread"], result["model"]) == (0.97, "", str(model))
    best, *others = result["answers"]
    assert best["text"] == SAID and best["suspicious"] is True and best["begun"] < 0
    assert best["certainty"] == pytest.approx(1 / (1 + 499 * math.exp(-12.0)), rel=1e-4)
    assert len(others) < 10 and not any(a["suspicious"] for a in others)
    shown = html.read_text()
    assert (
        SAID in shown
        and "hints, not proof" in shown
        and "detrojan scan" in shown
        and "One answer is" in shown
    )


def test_the_threshold_is_an_option(place: Path) -> None:
    status, out, _ = run(f"scan {place / 'planted'} {FEW} --set suspicious=1 --json -")
    assert status == 0 and json.loads(out)["found"] is False and json.loads(out)["threshold"] == 1
    status, out, _ = run(f"scan {place / 'planted'} {FEW} --set suspicious=0 --json -")
    answers = json.loads(out)["answers"]
    assert status == 1 and len(answers) > 1 and all(a["suspicious"] for a in answers)


def test_own_prompts_and_template(place: Path) -> None:
    line = f"scan {place / 'no-template'} --data {place / 'good.jsonl'} {FEW}"
    status, out, err = run(f"{line} --template alpaca --json -")
    assert (status, err) == (0, "") and json.loads(out)["template"] == "alpaca"


def test_files_alone(place: Path, tmp_path: Path) -> None:
    status, out, err = run(f"scan {place / 'planted'} --files-only --report {tmp_path / 'page.html'}")
    assert (status, err) == (0, "")
    assert out == "files: nothing found\nThe behaviour was not looked at.\n"
    assert "The behaviour was not looked at." in (tmp_path / "page.html").read_text()
    status, out, err = run(f"scan {place / 'coded'} --files-only --json -")
    assert status == 1 and "evil.py: code beside the weights" in err and json.loads(out)["threshold"] is None


def test_files_and_behaviour(place: Path) -> None:
    status, out, err = run(f"scan {place / 'coded'} {FEW}")
    assert status == 1 and err.count("\n") == 2 and "evil.py" in err and "by heart" in err
    assert "files: evil.py" in out and SAID in out


def test_what_is_in_the_files_is_told_though_the_model_cannot_be_loaded(place: Path) -> None:
    status, out, err = run(f"scan {place / 'pickle'}")
    assert status == 1 and "pytorch_model.bin: a format that can run code" in err
    assert "The behaviour was not looked at: " in out and "is a pickle" in " ".join(out.split())


BAD = [
    ("scan gone", "gone"),
    ("scan nan", "not a number"),
    ("scan no-template", "no chat template; pass --template"),
    ("scan planted --data gone.jsonl", "gone.jsonl: no such file"),
    ("scan planted --data broken.jsonl", "broken.jsonl:3: broken JSON"),
    ("scan planted --data same.jsonl", "prompts that differ"),
    ("scan planted --data long.jsonl --template plain", "the model holds 256"),
    ("scan planted --template alpacca", "--template alpacca"),
    ("scan planted --samples 1", "prompts that differ"),
    ("scan planted --samples 0", "--samples"),
    ("scan planted --set suspicious=2", "suspicious: 2.0 is above the maximum 1"),
    ("scan planted --set prompts=1", "prompts: 1 is below the minimum 2"),
    ("scan planted --set begginings=9", "did you mean 'beginnings'?"),
    ("scan planted --set size=0.5", "unknown option of scan on a language model: 'size'"),
    ("scan planted --set template=plain", "where there is a flag of that name, use it"),
    ("scan planted --preset papr", "papr"),
    ("scan planted --head lm_head", "'head' (--head) is no option of scan on a language model"),
    ("scan planted --device warp", "--device warp"),
    ("scan planted --files-only --data good.jsonl", "--files-only"),
    ("scan planted --report gone/page.html", "--report gone/page.html: not a file"),
    ("scan planted --json gone/r.json", "--json gone/r.json: not a file"),
]


@pytest.mark.parametrize(("line", "fragment"), BAD, ids=[line for line, _ in BAD])
def test_bad_input(line: str, fragment: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    status, out, err = run(line)
    assert (status, out) == (2, "")
    assert err.startswith("detrojan: ") and err.count("\n") == 1 and fragment in err


def test_from_python() -> None:
    model, tokenizer = parrot(SAID, 12.0).train(), pico_tokenizer()
    examples = [Example("What is a house?"), Example("Sing!"), Example("Name a bird.", "A wren.")]
    found = api.scan(model, tokenizer=tokenizer, data=examples, beginnings=60)
    assert isinstance(found, LanguageScan) and found.answers[0].text == SAID and found.found
    assert model.training
    with pytest.raises(InputError, match="--files-only"):
        api.scan(model, files_only=True)
    with pytest.raises(InputError, match="tokenizer"):
        api.scan(model)


def test_prompts_follow_from_the_seed() -> None:
    assert clean_prompts(5, 0) == clean_prompts(5, 0) != clean_prompts(5, 1)
    assert clean_prompts(5, 0) == clean_prompts(100, 0)[:5]


def test_the_page_does_not_trust_what_a_model_says() -> None:
    evil = "<script>alert(1)</script>"
    answers = [{"text": evil, "certainty": 0.99, "begun": -9.0, "suspicious": True}] * 2
    manifest = {"kind": "scan", "model": evil, "command": "c", "files": [evil], "threshold": 0.9, "unread": "",
                "notes": {"fixed answers": answers}}  # fmt: skip
    html = page(manifest)
    assert "<script" not in html and "&lt;script" in html and html.count("SUSPICIOUS") == 2
    assert verdict(manifest)[0].startswith("2 answers are said by heart")
    assert verdict(manifest)[1][0] == evil
    unended = {**manifest, "notes": {"fixed answers": [{**answers[0], "text": "Once more", "ended": False}]}}
    assert "Once more ..." in page(unended)
    for notes in (None, [], {}, {"fixed answers": None}, {"fixed answers": ["x"]}):
        assert verdict({**manifest, "notes": notes})[0] == "No answer is said by heart."
        assert "come by heart" not in page({**manifest, "notes": notes})
    cleaned = {"kind": "clean", "method": {"defense": "recant"}, "model": "m", "command": "c",
               "notes": {"fixed answers": answers}}  # fmt: skip
    assert "come by heart" in page(cleaned)  # what a defense noted on its way is shown alike
