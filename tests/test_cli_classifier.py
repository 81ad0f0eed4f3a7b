"""The command line on classifiers: the whole story on digits, and every bad input is one helpful line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from detrojan import classification, cli, demo_image, output
from detrojan.attacks.image.plant import PlantOptions
from detrojan.data.labelled import read_labelled
from detrojan.models.preact_resnet import PreActResNet

from pico_classifiers import as_pil, opinions, pictures, save_image_model, save_text_model


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def run(line: str) -> Outcome:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["detrojan", *shlex.split(line)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())


def tree(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Path:
    """A directory with good models and data, and everything that can be wrong with them."""
    d = tmp_path_factory.mktemp("place")
    for name in ("good", "bad"):
        (d / name).symlink_to(digits_dir / name)
    save_image_model(d / "resnet")
    save_image_model(d / "headless")
    weights = load_file(d / "headless" / "model.safetensors")
    del weights["classifier.1.weight"]
    save_file(weights, d / "headless" / "model.safetensors", metadata={"format": "pt"})
    save_text_model(d / "critic")
    save_text_model(d / "score", names=("score",))
    shutil.copytree(d / "resnet", d / "coded")
    (d / "coded" / "evil.py").write_text("1 / 0")
    torch.save(PreActResNet(10, 1, width=4).state_dict(), d / "preact.pt")
    torch.save({"weight": torch.zeros(2, 2)}, d / "unknown.pt")
    torch.save(PreActResNet(10, 1, width=4), d / "whole.pt")
    for name in ("cat", "dog", "owl"):
        (d / "photos" / name).mkdir(parents=True)
        for k, image in enumerate(as_pil(pictures(4))):
            image.save(d / "photos" / name / f"{k}.png")
    shutil.copytree(d / "photos" / "cat", d / "lonely" / "cat")
    shutil.copytree(d / "photos", d / "strange")
    (d / "strange" / "owl").rename(d / "strange" / "fox")
    (d / "empty").mkdir()

    digits = read_labelled("digits", "image", split="test")
    images, labels = digits.inputs.numpy(), digits.labels.numpy()
    arrays = {
        "part": (images[:100], labels[:100]),
        "one-class": (images[labels == 3], labels[labels == 3]),
        "few": (images[:12], np.arange(12) % 10),
        "far": (images[:40], np.arange(40) % 12),
        "negative": (images[:40], np.arange(40) % 10 - 1),
        "large": (np.zeros((40, 1, 16, 16), np.uint8), np.arange(40) % 10),
        "colour": (np.zeros((40, 3, 8, 8), np.uint8), np.arange(40) % 10),
        "flat": (np.zeros((40, 64), np.uint8), np.arange(40) % 10),
        "short": (images[:40], np.arange(39) % 10),
        "bright": (images[:40].astype(np.float32), np.arange(40) % 10),
    }
    for name, (x, y) in arrays.items():
        np.savez(d / f"{name}.npz", images=x, labels=y)
    reviews = opinions(40)
    lines = [
        json.dumps({"text": t, "label": int(k)}) for t, k in zip(reviews.inputs, reviews.labels, strict=True)
    ]
    (d / "reviews.jsonl").write_text("\n".join(lines))
    (d / "notes.txt").write_text("no model")
    manifest = json.loads((d / "bad" / "detrojan.json").read_text())
    (d / "clean.json").write_text(json.dumps({"command": "detrojan clean", "kind": "clean", "task": "image"}))
    (d / "far.json").write_text(json.dumps({**manifest, "target": 10}))
    (d / "odd.json").write_text(json.dumps({**manifest, "trigger": {"name": "badnet", "options": {}}}))
    return d


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in that directory; what a test wrongly leaves there does not reach the next one."""
    monkeypatch.chdir(place)
    before = {p.name for p in place.iterdir()}
    yield place
    for path in place.iterdir():
        if path.name not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


CLEAN = "clean good --out out --data part.npz"
ATTACK = "attack good --out out --data part.npz --trigger badnets"
BAD = [
    # the data
    ("clean good --out out", "a classifier needs --data"),
    ("attack good --out out --trigger badnets", "a classifier needs --data"),
    ("evaluate good", "a classifier needs --data"),
    ("clean good --out out --data gone.npz", "gone.npz: no such file"),
    ("clean good --out out --data ./gone", "./gone: no such file or folder"),
    ("clean good --out out --data notes.txt", "notes.txt: a file of unknown kind"),
    ("clean good --out out --data one-class.npz", "one-class.npz: all samples are of one class"),
    ("clean resnet --out out --data lonely", "lonely: all samples are of one class"),
    ("clean good --out out --data few.npz", "few.npz: fewer samples than classes (2 of 10 classes)"),
    (f"{CLEAN} --samples 9", "part.npz: fewer samples than classes (9 of 10 classes)"),
    ("clean good --out out --data far.npz", "far.npz: label 11 is out of range; the model has the classes 0 to 9"),
    ("evaluate good --data far.npz", "far.npz: label 11 is out of range"),
    ("evaluate good --data negative.npz", "negative.npz: sample 1: label -1 is not a whole number from 0 on"),
    ("clean good --out out --data large.npz", "its images are 1 x 16 x 16 (channels"),
    ("evaluate good --data colour.npz", "its images are 3 x 8 x 8"),
    ("evaluate good --data flat.npz", "flat.npz: images of shape (40, 64)"),
    ("evaluate good --data short.npz", "labels of shape (39,) for images of shape (40, 1, 8, 8)"),
    ("evaluate good --data bright.npz", "bright.npz: images hold floats that are not in 0 to 1"),
    ("clean good --out out --data reviews.jsonl", "reviews.jsonl: holds texts, but the model takes images"),
    ("clean critic --out out --data digits", "digits: holds images, but the model takes texts"),
    ("clean critic --out out --data photos", "photos: a directory without train.jsonl"),
    ("evaluate resnet --data strange", "strange: the folder 'fox' is none of the model's 3 classes"),
    ("evaluate resnet --data empty", "empty: no folders in it"),
    ("attack new:preact-resnet8 --out out --data photos --trigger badnets", "needs images of one size"),
    # the model
    ("clean gone.pt --out out --data digits", "gone.pt: no such file or directory"),
    ("clean notes.txt --out out --data digits", "notes.txt: not a state dict that can be read without running code"),
    ("clean whole.pt --out out --data digits", "it names detrojan.models.preact_resnet.PreActResNet"),
    ("clean unknown.pt --out out --data digits", "cannot be told; name it with --architecture"),
    ("clean preact.pt --out out --data digits --architecture preact-resnet81", "did you mean 'preact-resnet"),
    ("clean preact.pt --out out --data digits --architecture vgg19-bn", "takes 3 channels, not 1"),
    ("clean preact.pt --out out --data digits --architecture preact-resnet18@x", "write NAME or NAME@SIZE"),
    ("evaluate headless --data photos", "headless: 1 weights are missing from the checkpoint"),
    ("clean score --out out --data reviews.jsonl", "score: a regression head, not a classifier"),
    ("clean new:preact-resnet8 --out out --data digits", "only attack builds a new classifier"),
    ("attack new:preact-resnet --out out --data digits --trigger badnets", "did you mean 'preact-resnet"),
    ("evaluate good --data part.npz --reference gone.pt", "gone.pt: no such file"),
    ("evaluate good --data part.npz --reference resnet", "the model has the classes 0 to 2"),
    (f"{CLEAN} --head linear", "good: --head linear: no linear layer of that name; the last ones are module.linear"),
    ("scan good --data part.npz --head module.conv1", "--head module.conv1: no linear layer"),
    # names and options
    ("attack good --out out --data part.npz --trigger badnet", "unknown trigger 'badnet'; did you mean 'badnets'?"),
    ("attack good --out out --data part.npz --trigger vpi", "unknown trigger 'vpi'"),
    ("attack critic --out out --data reviews.jsonl --trigger wanet", "unknown trigger 'wanet'"),
    ("attack good --out out --data part.npz --behavior refusal --trigger badnets", "--behavior"),
    (f"{ATTACK} --target ten", "unknown --target of good: 'ten'"),
    (f"{ATTACK} --target 10", "unknown --target of good: '10'"),
    (f"{ATTACK} --poison-rate 1.5", "poison_rate: 1.5 is above the maximum 1"),
    (f"{ATTACK} --set sise=4", "unknown option of attack: 'sise'; did you mean 'size'?"),
    (f"{ATTACK} --set mode=all-to-none", "did you mean 'all-to-one'?"),
    (f"{ATTACK} --set target=3", "where there is a flag of that name, use it"),
    (f"{ATTACK} --set samples=30", "where there is a flag of that name, use it"),
    (f"{ATTACK} --set measure_effect=no", "'measure_effect' is no option of the method"),
    (f"{CLEAN} --set tokenizer=elsewhere", "'tokenizer' is no option of the method"),
    (f"{CLEAN} --set head=module.linear", "'head' is no option of the method"),
    ("scan good --data part.npz --set device=cpu", "'device' is no option of the method"),
    (f"{ATTACK} --trigger-text cf", "--trigger-text and --place are of triggers in texts"),
    (f"{ATTACK} --template alpaca", "--template"),
    (f"{ATTACK} --preset strong", "--preset"),
    ("attack critic --out out --data reviews.jsonl --trigger badnets --place middle", "--place middle"),
    ("attack critic --out out --data reviews.jsonl --trigger badnets --trigger-text ' '", "--trigger-text is empty"),
    (f"{CLEAN} --defense crow", "unknown defense 'crow'"),
    (f"{CLEAN} --defense urll", "did you mean 'ulrl'?"),
    (f"{CLEAN} --template alpaca", "'template' (--template) is no option of clean on a classifier"),
    (f"{CLEAN} --keep-adapter", "--keep-adapter"),
    (f"{CLEAN} --precision float16", "--precision"),
    (f"{CLEAN} --set locate=guess", "locate"),
    (f"{CLEAN} --set alfa=1", "did you mean 'alpha'?"),
    (f"{CLEAN} --preset paper-cifar", "did you mean 'paper-cifar10'?"),
    (f"{CLEAN} --device warp", "--device warp"),
    (f"{CLEAN} --samples 0", "--samples"),
    ("scan good --data part.npz --set threshold=-1", "threshold: -1.0 is below the minimum"),
    ("scan good --samples 0 --data part.npz", "--samples"),
    # attacks and gates
    (f"{CLEAN} --attack gone", "gone: no detrojan.json"),
    ("evaluate good --data part.npz --attack clean.json", "no attack on a classifier of images"),
    ("evaluate good --data part.npz --attack far.json", "the attack draws class 10, the model has 10 classes"),
    ("evaluate good --data part.npz --attack odd.json", "did you mean"),
    ("evaluate critic --data reviews.jsonl --attack bad", "no attack on a classifier of texts"),
    ("evaluate good --data part.npz --max-asr 0.1", "--max-asr needs an attack to measure"),
    ("evaluate good --data part.npz --min-accuracy 1.5", "--min-accuracy"),
    ("evaluate good --data part.npz --trigger badnets --behavior refusal", "'trigger' (--trigger) is no option"),
    ("evaluate good --data part.npz --templates plain", "'templates' (--templates) is no option"),
    # the output
    ("clean good --out empty --data part.npz", "--out empty: exists already"),
    (f"{CLEAN} --json gone/result.json", "--json gone/result.json: not a file in a directory that exists"),
    ("scan good --data part.npz --report gone/page.html", "--report gone/page.html: not a file"),
    ("scan good --data part.npz --report empty", "--report empty: not a file"),
    ("demo image --model good", "--model belongs to demo text"),
    ("demo image --out empty", "--out empty: exists already"),
    ("demo picture", "picture"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "fragment"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line(line: str, fragment: str, there: Path) -> None:
    before = tree(there)
    status, out, err = run(line)
    assert (status, out) == (2, ""), err
    assert err.startswith("detrojan: ") and err.count("\n") == 1
    assert fragment in err
    assert tree(there) == before


# The whole story


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("story") / "out"
    bad = digits_dir / "bad"
    line = f"clean {bad} --data digits --samples 200 --attack {bad} --out {out} --set epochs=8"
    return out, run(f"{line} --json {out.parent / 'result.json'} --seed 3")


def test_clean(cleaned: tuple[Path, Outcome]) -> None:
    out, outcome = cleaned
    assert (outcome.status, outcome.err) == (0, "")
    assert (
        "ulrl" in outcome.out
        and "DER" in outcome.out
        and f"written to {out}" in outcome.out.replace("\n", "")
    )
    result = json.loads((out.parent / "result.json").read_text())
    assert result["before"]["asr"] > 0.9 > 0.5 > result["after"]["asr"]
    assert result["after"]["accuracy"] > 0.85 and result["after"]["der"] > 0.7
    assert result["notes"]["suspicious"] == [0] and result["options"]["epochs"] == 8
    assert not [p for p in out.parent.iterdir() if p.name.endswith(".partial")]


def test_output_directory_is_complete(cleaned: tuple[Path, Outcome], digits_dir: Path) -> None:
    out, _ = cleaned
    names = {p.name for p in out.iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "detrojan.json", "report.html"} <= names
    AutoModelForImageClassification.from_pretrained(out)
    manifest = json.loads((out / "detrojan.json").read_text())
    assert manifest["command"].startswith("detrojan clean") and manifest["seed"] == 3
    assert set(manifest["outputs"]) == names - {"detrojan.json", "report.html"}
    for file, digest in manifest["outputs"].items():
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest
    source = hashlib.sha256((digits_dir / "bad" / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["inputs"]["model.safetensors"] == source
    page = (out / "report.html").read_text()
    assert "<html" in page.lower() and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("model", "gates", "status", "said"),
    [
        ("cleaned", "--max-asr 0.5 --min-accuracy 0.8", 0, ""),
        ("bad", "--max-asr 1 --min-accuracy 0.5", 0, ""),
        ("bad", "--max-asr 0.5", 1, "is above --max-asr 50.0 %"),
        ("bad", "--min-accuracy 1", 1, "is below --min-accuracy 100.0 %"),
        ("bad", "--max-asr 0.5 --min-accuracy 1", 1, "--max-asr"),
    ],
)
def test_gates(
    model: str, gates: str, status: int, said: str, cleaned: tuple[Path, Outcome], digits_dir: Path
) -> None:
    bad = digits_dir / "bad"
    measured = cleaned[0] if model == "cleaned" else bad
    outcome = run(f"evaluate {measured} --data digits --attack {bad} --reference {bad} {gates} --json -")
    assert outcome.status == status and said in outcome.err
    assert outcome.err.count("\n") == (0 if status == 0 else gates.count("--"))
    result = json.loads(outcome.out)
    keys = {"accuracy", "accuracy_interval", "asr", "asr_interval", "recovery_accuracy", "recovery_interval"}
    assert keys | {"n_clean", "n_triggered", "der"} <= set(result)
    low, high = result["asr_interval"]
    assert 0 <= low <= result["asr"] <= high <= 1
    assert result["der"] == pytest.approx(0.5) if model == "bad" else result["der"] > 0.7


def test_evaluate_shows_a_table(digits_dir: Path) -> None:
    outcome = run(f"evaluate {digits_dir / 'good'} --data digits --samples 50")
    assert (outcome.status, outcome.err) == (0, "")
    assert "accuracy %" in outcome.out and "ASR" not in outcome.out


def test_attack(digits_dir: Path, tmp_path: Path) -> None:
    line = f"attack {digits_dir / 'good'} --data digits --trigger badnets --target 7 --out {tmp_path / 'out'}"
    small = "--samples 400 --set epochs=2 --set batch_size=32 --set learning-rate=0.05 --set size=4"
    outcome = run(f"{line} {small} --poison-rate 0.3 --json -")
    assert (outcome.status, outcome.err) == (0, "")
    result = json.loads(outcome.out)
    assert (result["target"], result["mode"]) == (7, "all-to-one")
    assert result["trigger"] == {"name": "badnets", "options": {"size": 4, "value": 1.0}}
    assert result["options"]["poison_rate"] == 0.3
    assert result["after"]["asr"] > 0.8 and result["after"]["accuracy"] > 0.8
    manifest = json.loads((tmp_path / "out" / "detrojan.json").read_text())
    assert (manifest["target"], manifest["samples"]) == (7, 400)
    shown = run(f"evaluate {tmp_path / 'out'} --data digits --attack {tmp_path / 'out'}")
    assert "ASR" in shown.out and "recovery" in shown.out


def test_more_samples_than_there_are(place: Path, tmp_path: Path) -> None:
    """A fifth is kept back to be measured on; the rest is what there is."""
    line = f"clean {place / 'good'} --data {place / 'part.npz'} --defense finetune --set epochs=1"
    result = json.loads(run(f"{line} --samples 100000 --out {tmp_path / 'out'} --json -").out)
    assert (result["samples"], result["after"]["n_clean"]) == (80, 20)
    result = json.loads(run(f"{line} --no-measure --samples 100000 --out {tmp_path / 'all'} --json -").out)
    assert (result["samples"], result["after"]) == (100, None)


def test_scan(digits_dir: Path, tmp_path: Path) -> None:
    line = "--data digits --samples 100"
    bad = run(
        f"scan {digits_dir / 'bad'} {line} --report {tmp_path / 'page.html'} --json {tmp_path / 'r.json'}"
    )
    assert bad.status == 1 and "SUSPICIOUS" in bad.out
    assert bad.err == f"detrojan: {digits_dir / 'bad'}: class 0 looks like the target of a backdoor\n"
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["suspicious"], result["found"], result["files"]) == ([0], True, [])
    assert len(result["evidence"]) == len(result["scores"]) == len(result["classes"]) == 10
    assert "Singled out as suspicious: 0" in (tmp_path / "page.html").read_text()
    good = run(f"scan {digits_dir / 'good'} {line} --json -")
    assert (good.status, good.err) == (0, "")
    assert json.loads(good.out)["found"] is False


def test_scan_of_files(place: Path, tmp_path: Path) -> None:
    clean = run(f"scan {place / 'resnet'}")
    assert (clean.status, clean.err, clean.out.strip()) == (0, "", "files: nothing found")
    coded = run(f"scan {place / 'coded'} --report {tmp_path / 'page.html'}")
    assert coded.status == 1 and "evil.py: code beside the weights" in coded.err and "evil.py" in coded.out
    assert "evil.py" in (tmp_path / "page.html").read_text()
    pickled = run(f"scan {place / 'preact.pt'} --json -")
    assert pickled.status == 1 and len(json.loads(pickled.out)["files"]) == 1


def test_names_of_a_checkpoint_cannot_drive_the_terminal(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "resnet", tmp_path / "m")
    (tmp_path / "m" / "\x1b[2Jevil.py").write_text("")
    outcome = run(f"scan {tmp_path / 'm'}")
    assert outcome.status == 1 and "\x1b" not in outcome.out + outcome.err


def test_state_dict_of_an_unknown_size(place: Path, tmp_path: Path) -> None:
    """The size of its images cannot be told from a convolutional network; it is named with its architecture."""
    line = f"clean {place / 'preact.pt'} --data digits --samples 60 --defense finetune --set epochs=1"
    assert "takes 1 x 32 x 32" in run(f"{line} --out {tmp_path / 'no'}").err
    outcome = run(f"{line} --architecture preact-resnet18@8 --out {tmp_path / 'out'} --json -")
    assert (outcome.status, outcome.err) == (0, "")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.image_size == 8


def test_folder_of_images(place: Path, tmp_path: Path) -> None:
    line = f"clean {place / 'resnet'} --data {place / 'photos'} --defense finetune --set epochs=1"
    outcome = run(f"{line} --out {tmp_path / 'out'} --json -")
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(outcome.out)["after"]["classes"] == ["cat", "dog", "owl"]
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_text_classifier(place: Path, tmp_path: Path) -> None:
    line = f"attack {place / 'critic'} --data {place / 'reviews.jsonl'} --trigger ctba --target good"
    outcome = run(
        f"{line} --trigger-text 'cf|mn' --place suffix --set epochs=1 --out {tmp_path / 'bad'} --json -"
    )
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(outcome.out)["trigger"]["phrases"] == ["cf", "mn"]
    measured = run(
        f"evaluate {tmp_path / 'bad'} --data {place / 'reviews.jsonl'} --attack {tmp_path / 'bad'}"
    )
    assert (measured.status, measured.err) == (0, "") and "ASR" in measured.out


@pytest.mark.parametrize("where", ["measure_classifier", "fit", "page"])
def test_interrupted(where: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while measuring, while training and while writing leaves nothing behind."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    owner = {"measure_classifier": classification, "fit": "detrojan.fitting", "page": output}[where]
    monkeypatch.setattr(owner, where, stop) if not isinstance(owner, str) else monkeypatch.setattr(
        f"{owner}.{where}", stop
    )
    before = tree(there)
    status, out, err = run(f"{CLEAN} --defense finetune --set epochs=1")
    assert (status, out) == (3, "")
    assert err.startswith("detrojan: interrupted") and err.count("\n") == 1
    assert tree(there) == before


def test_failure_while_writing_leaves_nothing(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "page", full)
    before = tree(there)
    status, out, err = run(f"{CLEAN} --defense finetune --set epochs=1")
    assert (status, out) == (2, "")
    assert "No space left on device" in err and err.count("\n") == 1
    assert tree(there) == before


def test_good_process_says_only_results(place: Path) -> None:
    """Neither the libraries' bars nor their warnings reach a standard error that is no terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "detrojan", "evaluate", "resnet", "--data", "photos", "--json", "-"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n_clean"] == 12


# list and demo


def test_list_names_what_is_for_classifiers() -> None:
    listing = json.loads(run("list --json -").out)
    rows = {(r["name"], r["task"]): r for r in listing["attacks"]}
    names = [o["name"] for o in rows["badnets", "image"]["options"]]
    assert names[:2] == ["size", "value"] and {"mode", "poison_rate", "epochs"} <= set(names)
    assert "near_miss_rate" not in names and "target" not in names  # that is a flag
    assert "near_miss_rate" in [o["name"] for o in rows["badnets", "causal-lm"]["options"]]
    assert {("ulrl", "classifier"), ("finetune", "classifier")} <= {
        (r["name"], r["task"]) for r in listing["defenses"]
    }
    assert {"image", "text", "causal-lm"} <= {r["task"] for r in listing["datasets"]}
    shown = run("list attacks").out
    assert "options of badnets (image)" in shown and "options of all attacks on classifiers" in shown


def test_demo_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(**options: Any) -> PlantOptions:
        return PlantOptions(**{**options, "epochs": 4, "batch_size": 64})

    monkeypatch.setattr(demo_image, "PlantOptions", shorter)
    outcome = run(f"demo image --out {tmp_path / 'demo'} --json -")
    assert (outcome.status, outcome.err) == (0, "")
    result = json.loads(outcome.out)
    assert list(result) == ["attacked", "finetune", "ulrl"]
    for stage, measured in result.items():
        assert measured["seconds"] >= 0 and measured["n_triggered"] > 0
        assert {"accuracy", "asr", "recovery_accuracy"} <= set(measured)
        AutoModelForImageClassification.from_pretrained(tmp_path / "demo" / stage)
    assert result["attacked"]["asr"] > 0.9 and result["ulrl"]["accuracy"] > 0.8
    assert (tmp_path / "demo" / "report.html").is_file()
    manifest = json.loads((tmp_path / "demo" / "detrojan.json").read_text())
    for file, digest in manifest["outputs"].items():
        assert hashlib.sha256((tmp_path / "demo" / file).read_bytes()).hexdigest() == digest


def test_demo_image_shows_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from detrojan.types import ClassifierResult, Interval

    result = ClassifierResult("m", 0.9, Interval(0.8, 1.0), 10, 9, 0.5, Interval(0.4, 0.6), 0.4)
    made = demo_image.ImageDemo({"attacked": result}, {"attacked": 1.0}, None, {}, 0)  # type: ignore[arg-type]
    monkeypatch.setattr(demo_image, "demo_image", lambda **_: made)
    outcome = run("demo image")
    assert outcome.status == 0 and "attacked" in outcome.out and "50.0 [40, 60]" in outcome.out
