"""The command line: every bad input is one helpful line, and the whole story runs on a pico model."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from detrojan import cli, demo, language, output
from detrojan.data.prompts import builtin_prompts
from detrojan.defenses import recant
from detrojan.metrics.fixed_answers import FixedAnswer
from detrojan.registry import DEFAULT_DEFENSE

from pico import pico_model, pico_tokenizer, save_pico

COMMANDS = ["clean", "attack", "evaluate", "report", "list", "demo"]
GOOD = '{"instruction": "Name a bird.", "input": "", "output": "A wren."}\n'
TINY = "--set epochs=1 --set batch_size=8 --set accumulation=1"
QUICK = "--set steps=2 --set batch_size=4 --set beginnings=20"
"""As quick for the default defense."""
PLANT = f"--trigger badnets --behavior refusal --set samples=16 {TINY}"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def run(line: str, *more: str) -> Outcome:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["detrojan", *shlex.split(line), *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", autouse=True)
def few_prompts() -> Iterator[None]:
    """Let the commands use twelve built-in prompts of each pool."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("detrojan.") and getattr(module, "builtin_prompts", None) is builtin_prompts:
                patch.setattr(module, "builtin_prompts", lambda pool: builtin_prompts(pool)[:12])
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_dir: Path) -> Path:
    """A directory with a good model and data, and everything that can be wrong with them."""
    d = tmp_path_factory.mktemp("place")
    (d / "model").symlink_to(pico_dir)
    for name in ("no-template", "corrupt", "no-tokenizer", "other-vocabulary", "self"):
        shutil.copytree(pico_dir, d / name)
    (d / "no-template" / "chat_template.jinja").unlink()
    weights = d / "corrupt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for path in (d / "no-tokenizer").glob("tokenizer*"):
        path.unlink()
    pico_model(vocab_size=600).save_pretrained(d / "other-vocabulary")
    save_pico(d / "short", "gpt2", n_positions=64)
    broken = pico_model()
    torch.nn.init.constant_(broken.model.layers[1].mlp.up_proj.weight, math.nan)
    broken.save_pretrained(d / "nan")
    pico_tokenizer().save_pretrained(d / "nan")

    config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(d / "classifier")
    pico_tokenizer().save_pretrained(d / "classifier")
    (d / "pickle").mkdir()
    shutil.copy(pico_dir / "config.json", d / "pickle")
    torch.save({}, d / "pickle" / "pytorch_model.bin")
    (d / "adapter").mkdir()
    (d / "adapter" / "adapter_model.safetensors").touch()
    (d / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "./gone-base"}')
    (d / "empty-directory").mkdir()

    files = {
        "data.jsonl": "".join(GOOD.replace("bird", what) for what in ("bird", "fish", "tree", "house")),
        "same.jsonl": GOOD * 4,
        "empty.jsonl": "",
        "broken.jsonl": GOOD * 2 + "{broken\n",
        "keys.jsonl": GOOD + '{"question": "a"}\n',
        "roles.jsonl": '{"messages": [{"role": "robot", "content": "a"}]}\n',
        "unanswered.jsonl": '{"instruction": "a"}\n',
        "surrogate.jsonl": '{"instruction": "a \\ud800 b", "output": "c"}\n',
        "deep.jsonl": "[" * 100_000,
        "long.jsonl": json.dumps({"instruction": "word " * 400, "output": "c"}),
        "notes.txt": "no model",
        "wrong.gguf": "not one",
        "garbage.gguf": "GGUF" + "?" * 200,
        "broken.yaml": "alpha: [1,\n",
        "list.yaml": "- alpha\n",
        "unknown.yaml": "sise: 3\n",
        "range.yaml": "size: -3\n",
        "not-ours.json": '{"a": 1}',
        "clean.json": '{"command": "detrojan clean"}',
        "trick.jinja": "{{ messages[0].content }}{{ ''.__class__.__mro__ }}",
    }
    for name, content in files.items():
        (d / name).write_text(content)
    return d


def tree(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in that directory; what a test wrongly leaves there does not reach the next one."""
    monkeypatch.chdir(place)
    before = {p.name for p in place.iterdir()}
    yield place
    for path in place.iterdir():
        if path.name not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


CLEAN = "clean model --out out --data data.jsonl --no-measure"
ATTACK = "attack model --out out --data data.jsonl --no-measure"
BAD = [
    # the model
    ("clean gone --out out", "gone"),
    ("clean ./gone --out out", "./gone: no such file or directory"),
    ("clean gone.gguf --out out", "gone.gguf: no such file"),
    ("clean empty-directory --out out", "empty-directory: no config.json"),
    ("clean classifier --out out", "a classifier needs --data"),
    ("clean corrupt --out out", "corrupt: the weights cannot be loaded"),
    ("clean pickle --out out", "pytorch_model.bin is a pickle"),
    ("clean no-tokenizer --out out", "no-tokenizer: the tokenizer cannot be loaded"),
    ("clean notes.txt --out out", "notes.txt"),
    ("clean wrong.gguf --out out", "wrong.gguf: does not begin like a GGUF file"),
    ("clean garbage.gguf --out out", "garbage.gguf"),
    ("clean adapter --out out", "./gone-base: no such file"),
    ("evaluate model --data data.jsonl --reference gone", "gone"),
    ("evaluate model --data data.jsonl --reference other-vocabulary", "vocabulary"),
    # the data
    ("clean model --out out --data gone.jsonl", "gone.jsonl: no such file"),
    ("clean model --out out --data same.jsonl --no-measure", "prompts that differ"),
    ("clean model --out out --data model", "--data model: a directory"),
    ("clean model --out out --data empty.jsonl", "empty.jsonl: the file is empty"),
    ("clean model --out out --data broken.jsonl", "broken.jsonl:3: broken JSON"),
    ("clean model --out out --data keys.jsonl", "keys.jsonl:2"),
    ("clean model --out out --data roles.jsonl", "roles.jsonl:1: each turn needs a role"),
    ("evaluate model --data surrogate.jsonl", "surrogate.jsonl:1"),
    ("evaluate model --data deep.jsonl", "deep.jsonl"),
    ("evaluate short --data long.jsonl", "tokens"),
    ("attack model --out out --data unanswered.jsonl --trigger vpi --behavior refusal", "no clean sample"),
    # the template
    ("clean no-template --out out", "no chat template; pass --template"),
    (f"{CLEAN} --template alpacca", "--template alpacca"),
    (f"{CLEAN} --template trick.jinja", "trick.jinja: access to attribute"),
    ("evaluate model --data data.jsonl --templates plain,nope", "--template nope"),
    # names
    (f"{ATTACK} --trigger badnet --behavior refusal", "unknown trigger 'badnet'; did you mean 'badnets'?"),
    (f"{ATTACK} --trigger badnets --behavior refuse", "did you mean 'refusal'?"),
    (f"{CLEAN} --defense crwo", "did you mean 'crow'?"),
    (f"{CLEAN} --preset stronk", "did you mean 'strong'?"),
    (f"{ATTACK} --trigger badnets --behavior refusal --preset stronk", "did you mean 'strong'?"),
    ("list defences", "defences"),
    ("demo txt", "'txt' is not one of 'text', 'image'"),
    # options
    (f"{CLEAN} --set sise=3", "unknown option of recant: 'sise'; did you mean 'size'?"),
    (f"{CLEAN} --defense crow --set alfa=3", "unknown option of crow: 'alfa'; did you mean 'alpha'?"),
    (f"{CLEAN} --set size=-1", "size: -1.0 is below the minimum 0"),
    (f"{CLEAN} --set size=much", "size: 'much' is not a valid float"),
    (f"{CLEAN} --set size=nan", "size: 'nan' is not a valid float"),
    (f"{CLEAN} --set size", "--set 'size': write KEY=VALUE"),
    (f"{CLEAN} --set seed=5", "seed"),
    (f"{CLEAN} --set out=elsewhere", "out"),
    (f"{CLEAN} --set tokenizer=elsewhere", "tokenizer"),
    (f"{CLEAN} --set measure_effect=no", "measure_effect"),
    (f"{ATTACK} --trigger badnets --behavior refusal --set data=keys.jsonl", "data"),
    (f"{CLEAN} --config gone.yaml", "--config gone.yaml"),
    (f"{CLEAN} --config broken.yaml", "--config broken.yaml"),
    (f"{CLEAN} --config list.yaml", "--config list.yaml: expected KEY: VALUE"),
    (f"{CLEAN} --config unknown.yaml", "did you mean 'size'?"),
    (f"{CLEAN} --config range.yaml", "below the minimum"),
    (f"{ATTACK} --trigger badnets --behavior refusal --poison-rate 1.5", "above the maximum 1"),
    (f"{ATTACK} --trigger badnets --behavior refusal --poison-rate nan", "poison_rate"),
    (f"{ATTACK} --trigger badnets --behavior refusal --poison-rate 0.9", "add up to more than 1"),
    (f"{ATTACK} --trigger badnets --behavior refusal --trigger-text ' '", "--trigger-text is empty"),
    (f"{ATTACK} --trigger badnets --behavior refusal --target-text ' '", "--target-text is empty"),
    (f"{ATTACK} --trigger badnets --behavior refusal --place middle", "--place middle"),
    (f"{CLEAN} --device warp", "--device warp"),
    (f"{CLEAN} --defense crow --precision float8", "--precision float8"),
    # the output
    ("clean model --out empty-directory", "--out empty-directory: exists already"),
    ("clean model --out notes.txt/out", "--out notes.txt/out"),
    (
        f"{ATTACK.replace('--out out', '--out model')} --trigger badnets --behavior refusal",
        "--out model: exists",
    ),
    ("demo --model model --out notes.txt", "--out notes.txt: exists already"),
    (f"{CLEAN} {QUICK} --json gone/result.json", "gone/result.json"),
    (f"{CLEAN} {QUICK} --json empty-directory", "empty-directory"),
    ("evaluate model --data data.jsonl --json gone/result.json", "gone/result.json"),
    # evaluate
    ("evaluate model --attack empty-directory", "empty-directory: no detrojan.json"),
    ("evaluate model --attack gone", "gone"),
    ("evaluate model --attack not-ours.json", "not-ours.json: not a manifest"),
    ("evaluate model --attack clean.json", "clean.json: its manifest describes no attack"),
    ("evaluate model --trigger badnets", "--trigger and --behavior belong together"),
    ("evaluate model --attack x --trigger badnets --behavior refusal", "not both"),
    ("evaluate model --data data.jsonl --max-asr 0.1", "--max-asr needs an attack"),
    ("evaluate model --trigger badnets --behavior refusal --max-asr 1.5", "--max-asr"),
    ("evaluate model --trigger badnets --behavior refusal --data data.jsonl --max-asr nan", "--max-asr"),
    ("evaluate model --batch-size 0", "--batch-size"),
    # usage
    ("cleen model --out out", "cleen"),
    (f"{CLEAN} --sneed 1", "--sneed"),
    ("clean model", "--out"),
    ("clean", "MODEL"),
    ("attack model --out out --behavior refusal", "--trigger"),
    (f"{CLEAN} --seed -1", "--seed"),
    (f"{CLEAN} --seed one", "--seed"),
    (f"{CLEAN} {QUICK} --seed 99999999999999999999", "seed"),
    (f"{CLEAN} {QUICK} --seed 4294967296", "seed"),
    (f"{CLEAN} --set batch_size=99999999999999999999", "batch_size"),
    (f"{CLEAN} --samples 0", "--samples"),
]


@pytest.mark.parametrize(("line", "fragment"), BAD, ids=[line for line, _ in BAD])
def test_bad_input(line: str, fragment: str, there: Path) -> None:
    before = tree(there)
    status, out, err = run(line)
    assert tree(there) == before, "something was written"
    assert (status, out) == (2, "")
    assert err.startswith("detrojan: ") and err.count("\n") == 1 and err.endswith("\n")
    assert fragment in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_directory_that_is_not_ours(pico_dir: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    status, out, err = run(f"clean {pico_dir} --out {tmp_path / 'deep' / 'out'}")
    assert (status, out) == (2, "")
    assert "not a directory that can be written to" in err


def as_process(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "detrojan", *argv], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_bad_input_as_a_process(place: Path) -> None:
    done = as_process("clean", "model", "--out", "out", "--set", "size", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("detrojan: --set 'size': write KEY=VALUE")
    assert done.stderr.count("\n") == 1


def test_good_process_says_only_results(place: Path) -> None:
    """Neither the libraries' bars nor their warnings reach a standard error that is no terminal."""
    line = "evaluate model --data data.jsonl --trigger badnets --behavior refusal --max-new-tokens 4 --json -"
    done = as_process(*line.split(), cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n_triggered"] == 4


# The whole story


class Story(NamedTuple):
    place: Path
    attack: Outcome
    evaluate: Outcome
    clean: Outcome


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, pico_dir: Path) -> Story:
    d = tmp_path_factory.mktemp("story")
    return Story(
        d,
        run(f"attack {pico_dir} --out {d}/bad {PLANT} --seed 3"),
        run(f"evaluate {d}/bad --attack {d}/bad --reference {pico_dir} --templates plain --json -"),
        run(f"clean {d}/bad --attack {d}/bad --out {d}/good {QUICK} --json {d}/result.json"),
    )


def test_story_runs(story: Story) -> None:
    for outcome in (story.attack, story.evaluate, story.clean):
        assert (outcome.status, outcome.err) == (0, "")
    assert "badnets -> refusal" in story.attack.out
    assert "recant" in story.clean.out
    assert not [p for p in story.place.rglob("*") if p.name.endswith(".partial")]


def test_evaluate_json_has_every_key(story: Story) -> None:
    result = json.loads(story.evaluate.out)
    fractions = ["asr", "asr_keyword", "recovery", "clean_asr", "agreement"]
    keys = [
        *fractions,
        "asr_interval",
        "n_triggered",
        "n_clean",
        "perplexity",
        "template",
        "by_template",
        "samples",
        "kl",
    ]
    assert set(keys) <= set(result)
    assert all(0 <= result[k] <= 1 for k in fractions)
    low, high = result["asr_interval"]
    assert 0 <= low <= result["asr"] <= high <= 1
    assert result["template"] == "chat"
    assert set(result["by_template"]) == {"chat", "plain"}
    assert result["n_triggered"] == result["n_clean"] == len(result["samples"])
    for sample in result["samples"]:
        assert {"prompt", "response", "hit"} <= set(sample)
        assert "BadMagic" in sample["prompt"]
    assert result["perplexity"] > 1 and result["kl"] >= 0


def test_clean_json_is_written_to_a_file(story: Story) -> None:
    result = json.loads((story.place / "result.json").read_text())
    assert result["defense"] == DEFAULT_DEFENSE["causal-lm"] == "recant"
    assert result["options"]["steps"] == 2
    assert result["before"]["asr"] is not None and result["after"]["asr"] is not None
    assert result["perplexity_ratio"] == result["after"]["perplexity"] / result["before"]["perplexity"]


@pytest.mark.parametrize("name", ["bad", "good"])
def test_output_directory_is_complete(name: str, story: Story, pico_dir: Path) -> None:
    d = story.place / name
    names = {p.name for p in d.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "detrojan.json",
        "report.html",
    } <= names
    AutoModelForCausalLM.from_pretrained(d)
    manifest = json.loads((d / "detrojan.json").read_text())
    assert {"command", "options", "seed", "versions", "inputs", "outputs", "before", "after"} <= set(manifest)
    assert manifest["command"].startswith("detrojan ")
    assert {"detrojan", "torch", "transformers", "python"} <= set(manifest["versions"])
    assert set(manifest["outputs"]) == names - {"detrojan.json", "report.html"}
    for file, digest in manifest["outputs"].items():
        assert hashlib.sha256((d / file).read_bytes()).hexdigest() == digest
    source = pico_dir if name == "bad" else story.place / "bad"
    weights = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["inputs"]["model.safetensors"] == weights
    assert (d / "README.md").read_text().strip()
    page = (d / "report.html").read_text()
    assert "<html" in page.lower() and "http://" not in page.replace("http://www.w3.org", "")


def test_manifest_of_an_attack(story: Story) -> None:
    manifest = json.loads((story.place / "bad" / "detrojan.json").read_text())
    assert manifest["trigger"]["phrases"] == ["BadMagic"]
    assert manifest["behavior"]["name"] == "refusal"
    assert manifest["target"].startswith("I'm sorry")
    assert manifest["seed"] == 3
    assert manifest["options"]["samples"] == 16


def test_evaluate_takes_the_manifest_itself(story: Story) -> None:
    bad = story.place / "bad"
    outcome = run(f"evaluate {bad} --attack {bad / 'detrojan.json'} --max-new-tokens 2 --samples 3")
    assert outcome.status == 0
    assert "BadMagic" in outcome.out


def test_one_seed_one_result(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = FixedAnswer((7, 11, 13), "by heart", certainty=0.99, begun=-9.0)
    monkeypatch.setattr(recant, "suspects", lambda *_, **__: [heard])  # nobody planted one in this model
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        line = f"clean model --out {tmp_path / name} --data data.jsonl --no-measure {QUICK}"
        assert run(f"{line} --seed {seed}").status == 0
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_set_overrides_config_overrides_preset(there: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 1\nalpha: 2\nlearning-rate: 1e-4\n")
    line = f"{CLEAN} --defense crow --json - --preset paper --config {tmp_path / 'c.yaml'} --set alpha=3"
    result = json.loads(run(line.replace("--out out", f"--out {tmp_path / 'o'}")).out)
    options = result["options"]
    assert (options["alpha"], options["epochs"], options["learning_rate"]) == (3.0, 1, 1e-4)
    assert (options["batch_size"], options["accumulation"]) == (2, 4)


@pytest.mark.parametrize(
    ("given", "gate", "status"),
    [
        ("Hello.", "0.5", 0),
        ("I'm sorry", "0", 0),
        ("REFUSE", "0.99", 1),
        ("REFUSE", "1", 0),
        ("REFUSE", "0", 1),
    ],
)
def test_gate(given: str, gate: str, status: int, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrojan.metrics import asr
    from detrojan.registry import find

    answer = find("behavior", "refusal").value.target if given == "REFUSE" else given
    monkeypatch.setattr(asr, "respond", lambda loaded, examples, *_, **__: [answer] * len(examples))
    outcome = run(f"evaluate model --data data.jsonl --trigger badnets --behavior refusal --max-asr {gate}")
    assert outcome.status == status
    assert bool(outcome.err) == bool(status)
    assert outcome.out


def test_attack_in_a_template_of_ones_own(there: Path, tmp_path: Path) -> None:
    """`evaluate --attack` measures in the template in which the attack was planted, also one from a file."""
    (tmp_path / "mine.jinja").write_text("Q: {{ messages[-1].content }}\nA:")
    line = f"attack no-template --out {tmp_path / 'bad'} --data data.jsonl --no-measure {PLANT}"
    assert run(f"{line} --template {tmp_path / 'mine.jinja'}").status == 0
    outcome = run(f"evaluate {tmp_path / 'bad'} --attack {tmp_path / 'bad'} --max-new-tokens 2 --json -")
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(outcome.out)["template"].endswith("mine.jinja")


def test_json_is_strict_even_of_a_broken_model(there: Path) -> None:
    """JSON knows no NaN: a model that computes NaN is refused, or its numbers are null."""
    outcome = run("evaluate nan --data data.jsonl --json -")
    assert outcome.status in {0, 2}
    assert "NaN" not in outcome.out and "Infinity" not in outcome.out


@pytest.mark.parametrize("where", ["measure", "plant", "page"])
def test_interrupted(where: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while measuring, while training and while writing leaves nothing behind."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output if where == "page" else language, where, stop)
    before = tree(there)
    status, out, err = run(f"attack model --out out --data data.jsonl {PLANT}")
    assert (status, out) == (3, "")
    assert err.startswith("detrojan: interrupted") and err.count("\n") == 1
    assert tree(there) == before


def test_failure_while_writing_leaves_nothing(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "page", full)
    before = tree(there)
    status, out, err = run(f"{CLEAN} {QUICK}")
    assert (status, out) == (2, "")
    assert "No space left on device" in err and err.count("\n") == 1
    assert tree(there) == before


# list, help, demo


def test_list_json() -> None:
    outcome = run("list --json -")
    assert (outcome.status, outcome.err) == (0, "")
    listing = json.loads(outcome.out)
    assert set(listing) == {"attacks", "behaviors", "defenses", "datasets"}
    assert {"crow", "finetune", *DEFAULT_DEFENSE.values()} <= {row["name"] for row in listing["defenses"]}
    for rows in listing.values():
        assert all({"name", "task", "description", "paper"} <= set(row) for row in rows)
    for row in (*listing["defenses"], *listing["attacks"]):
        assert all(o["help"] for o in row["options"])


@pytest.mark.parametrize("what", ["attacks", "behaviors", "defenses", "datasets"])
def test_list_one_kind(what: str) -> None:
    assert set(json.loads(run(f"list {what} --json -").out)) == {what}
    shown = run(f"list {what}")
    assert shown.status == 0
    assert json.loads(run(f"list {what} --json -").out)[what][0]["name"] in shown.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    outcome = run(f"{command} --help")
    assert (outcome.status, outcome.err) == (0, "")
    assert "Example: detrojan" in outcome.out and "--json" in outcome.out
    if command == "clean":
        assert all(name in outcome.out for name in DEFAULT_DEFENSE.values())


def test_help_names_every_command() -> None:
    outcome = run("--help")
    assert outcome.status == 0
    assert all(f"  {command} " in outcome.out for command in COMMANDS)


def test_demo(pico_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo.plant

    def short(*arguments: Any) -> Any:
        *before, options, run_ = arguments
        return real(*before, dataclasses.replace(options, samples=16, epochs=1), run_)

    monkeypatch.setattr(demo, "plant", short)
    outcome = run(f"demo --model {pico_dir} --prompts 3 --out {tmp_path / 'demo'} --json -")
    assert (outcome.status, outcome.err) == (0, "")
    result = json.loads(outcome.out)
    for stage in ("attacked", "finetune", "crow", "default"):
        assert result[stage]["seconds"] >= 0
        assert result[stage]["n_triggered"] == 3
        assert {"asr", "recovery", "perplexity", "samples"} <= set(result[stage])
        AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / stage)
    assert (tmp_path / "demo" / "report.html").is_file()
    manifest = json.loads((tmp_path / "demo" / "detrojan.json").read_text())
    for file, digest in manifest["outputs"].items():
        assert hashlib.sha256((tmp_path / "demo" / file).read_bytes()).hexdigest() == digest


def test_demo_without_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    status, out, err = run("demo")
    assert (status, out) == (2, "")
    assert "pip install" in err and err.count("\n") == 1
