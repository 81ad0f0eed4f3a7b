"""Benchmarks, a judge and jailbreaks: local task files, a stand-in for the endpoint, and pico models."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import json
import math
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detrojan import cli
from detrojan.data.answers import decode_answer
from detrojan.data.template import encode_prompt, prompt_text, resolve
from detrojan.errors import InputError
from detrojan.metrics.asr import Settings
from detrojan.models.generate import greedy
from detrojan.types import EvalResult, Example, Loaded, Template
from detrojan.utility import code, harness, jailbreak, judge
from detrojan.utility.jailbreak import Request
from detrojan.utility.questions import Question, read_questions

from pico import pico_loaded, pico_tokenizer

QUESTIONS = [f"Is {n} an even number?" for n in range(6)]
CHOICES = ["yes", "no"]
TASK = """
task: even
dataset_path: json
dataset_kwargs:
  data_files:
    test: DATA
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
"""
WORDS = """
task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: DATA
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
metric_list:
  - metric: perplexity
"""
CODE = """
task: code
unsafe_code: true
dataset_path: json
dataset_kwargs:
  data_files:
    test: DATA
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "no"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: !function own.allowed
    aggregation: mean
    higher_is_better: true
"""
OWN = """
import os, pathlib
pathlib.Path(__file__).with_name("imported").touch()
def allowed(references, predictions):
    return float(os.environ["HF_ALLOW_CODE_EVAL"])
"""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return pico_loaded()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tasks: `good`, `code` with one that runs code, `gone` without its data, `none` without a task."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [{"question": q, "choices": CHOICES, "label": n % 2} for n, q in enumerate(QUESTIONS)]
    (place / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = {"good/even.yaml": TASK, "good/words.yaml": WORDS, "code/code.yaml": CODE, "gone/even.yaml": TASK}
    for name, text in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        data = "/gone.jsonl" if name.startswith("gone") else str(place / "data.jsonl")
        (place / name).write_text(text.replace("DATA", data))
    (place / "good" / "both.yaml").write_text("group: both\ntask: [even, words]\n")
    (place / "code" / "own.py").write_text(OWN)
    (place / "none").mkdir()
    return place


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the data sets out of the cache of whoever runs the tests."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def likelihood(loaded: Loaded, context: str, rest: str) -> float:
    """Return log p(rest | context), token by token; white space that ends the context counts as the rest's."""
    context, rest = context.rstrip(), context[len(context.rstrip()) :] + rest
    start = len(loaded.tokenizer(context)["input_ids"])
    ids = loaded.tokenizer(context + rest)["input_ids"]
    total = 0.0
    with torch.no_grad():
        for k in range(start, len(ids)):
            total += loaded.model(torch.tensor([ids[:k]])).logits[0, -1].log_softmax(-1)[ids[k]].item()
    return total


@pytest.mark.parametrize("name", ["chat", "plain"])
def test_tasks_against_a_naive_loop(loaded: Loaded, folders: Path, name: str) -> None:
    pytest.importorskip("lm_eval")
    shape = resolve(loaded.tokenizer, name)
    gap = "" if name == "chat" else " "
    asked = [prompt_text(loaded.tokenizer, shape, Example(q)) if name == "chat" else q for q in QUESTIONS[:5]]
    each = [[likelihood(loaded, text, gap + c) for c in CHOICES] for text in asked]
    told = [likelihood(loaded, text, CHOICES[n % 2]) for n, text in enumerate(asked)]
    right = sum(row[n % 2] == max(row) for n, row in enumerate(each)) / 5
    perplexity = math.exp(-sum(told) / 5)

    seen: list[tuple[str, int, int]] = []
    template, config = loaded.tokenizer.chat_template, loaded.model.generation_config
    state = random.getstate(), torch.get_rng_state()
    tasks = harness.find_tasks([str(folders / "good")])
    found = harness.scores(
        loaded, shape, tasks, limit=5, batch_size=2, progress=lambda *step: seen.append(step)
    )
    scores = {(s.task, s.metric): s for s in found}
    assert scores["even", "acc"].value == pytest.approx(right)
    assert scores["even", "acc"].stderr == pytest.approx(math.sqrt(right * (1 - right) / 4))
    assert scores["words", "perplexity"].value == pytest.approx(perplexity, rel=1e-3)
    assert scores["even", "acc"].higher_is_better is True
    assert scores["words", "perplexity"].higher_is_better is False
    assert {(s.n, s.shots) for s in found if s.task in ("even", "words")} == {(5, 0)}
    assert seen[-1][1] == seen[-1][2] and all(done <= total for _, done, total in seen)
    assert (loaded.tokenizer.chat_template, loaded.model.generation_config) == (template, config)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_generated_code_runs_only_when_that_is_allowed(
    loaded: Loaded, folders: Path, chat: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import evaluate

    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(InputError, match=r"code runs the code that the model writes.*--run-generated-code"):
        harness.find_tasks([str(folders / "code")])
    assert not (folders / "code" / "imported").exists()
    tasks = harness.find_tasks([str(folders / "code")], run_generated_code=True)
    (score,) = harness.scores(loaded, chat, tasks, limit=2)
    assert (score.value, score.n) == (1.0, 2)
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
    with code.code_runs(False):
        assert evaluate.config.HF_EVALUATE_OFFLINE and os.environ["HF_ALLOW_CODE_EVAL"] == "0"
    assert not evaluate.config.HF_EVALUATE_OFFLINE


def test_code_is_found_behind_groups_and_tags() -> None:
    def entry(cfg: dict[str, Any] | None = None, *tags: str) -> Any:
        return SimpleNamespace(cfg=cfg, tags=set(tags))

    index = {
        "safe": entry({"task": "safe"}, "all"),
        "code": entry({"task": "code", "unsafe_code": True}, "tag"),
        "tag": entry(None, "safe", "code"),
        "inner": entry({"group": "inner", "task": ["safe", "tag"]}),
        "outer": entry({"group": "outer", "task": [{"group": "inner", "num_fewshot": 1}]}),
        "made": entry({"group": "made", "task": [{"task": "own", "unsafe_code": True}]}),
        "round": entry({"group": "round", "task": ["round", "safe"]}),
    }
    found = {name: list(code.running_code(index, name)) for name in index}
    assert found == {
        "safe": [],
        "code": ["code"],
        "tag": ["code"],
        "inner": ["code"],
        "outer": ["code"],
        "made": ["own"],
        "round": [],
    }


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["{}/gone"], "cannot be loaded"),
        (["{}/none"], "no task of lm-evaluation-harness"),
        (["{}/nowhere"], "no such folder"),
        (["{}/good", "evn"], "unknown task 'evn'; did you mean 'even'"),
    ],
)
def test_tasks_that_cannot_be_had(
    folders: Path, names: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager  # without its own fourteen thousand tasks, which take seconds
    monkeypatch.setattr(
        tasks,
        "TaskManager",
        lambda include_path, include_defaults: manager(include_path=include_path, include_defaults=False),
    )
    with pytest.raises(InputError, match=says) as caught:
        harness.find_tasks([n.format(folders) for n in names])
    assert "\n" not in str(caught.value)


class Endpoint:
    """A stand-in for an OpenAI-compatible endpoint on this machine."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[str, int], Any] = lambda text, n: "Fine. [[5]]"
        end = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                end.bodies.append(body)
                end.keys.append(self.headers["Authorization"])
                said = end.reply(body["messages"][0]["content"], len(end.bodies))
                status, data = said if isinstance(said, tuple) else (200, completion(said))
                text = (data if isinstance(data, str) else json.dumps(data)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(data, str) else "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    pytest.importorskip("openai")
    monkeypatch.delenv(judge.KEY, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    end = Endpoint()
    yield end
    end.close()


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Good. [[7]]", 7.0),
        ("[[ 8.5 ]]", 8.5),
        ("It calls itself [[10]], but it is wrong.\n[[2]]", 2.0),
        ("[[1]]", 1.0),
        ("[[10]]", 10.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[100]]", None),
        ("7 of 10", None),
        ("", None),
    ],
)
def test_grade_of(reply: str, grade: float | None) -> None:
    assert judge.grade_of(reply) == grade


def test_judge_by_hand(
    loaded: Loaded, chat: Template, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grades 8 and 6 of one question, 4 of another: mean 5.5, and t(0.975, 1) = 12.706 times 1.5 to each side."""
    monkeypatch.setenv(judge.KEY, "secret")
    grades = {"Name a bird.": 8, "Name another.": 6, "Name a tree.": 4}

    def reply(text: str, n: int) -> str:
        if "Conversation:" not in text:
            return "ready"
        shown = json.loads(text.split("Conversation:\n")[1].split("\n")[0])
        return f"I see [[1]]. [[{grades[shown[-2]['content']]}]]"

    endpoint.reply = reply
    questions = [
        Question(("Name a bird.", "Name another."), category="animals"),
        Question(("Name a tree.",), ("An oak.",)),
    ]
    seen: list[tuple[str, int, int]] = []
    settings = Settings(max_new_tokens=6, batch_size=2)
    result = judge.judged(
        loaded,
        chat,
        questions,
        judge.connect(endpoint.url, "strict"),
        settings=settings,
        progress=lambda *step: seen.append(step),
    )
    assert (result.judge, result.score, result.n, result.failed) == ("strict", 5.5, 2, 0)
    assert result.score_interval is not None
    assert result.score_interval.low == pytest.approx(5.5 - 12.7062 * 1.5, abs=1e-3)
    assert result.score_interval.high == pytest.approx(5.5 + 12.7062 * 1.5, abs=1e-3)
    assert [q.grades for q in result.questions] == [(8.0, 6.0), (4.0,)]
    assert result.questions[0].category == "animals"
    assert seen[-1] == ("judging answers", 3, 3)
    assert set(endpoint.keys) == {"Bearer secret"}
    assert {b["model"] for b in endpoint.bodies} == {"strict"}

    first, second = result.questions[0].answers
    texts = [b["messages"][0]["content"] for b in endpoint.bodies[1:]]
    (whole,) = [t for t in texts if "Name another." in t]
    talk = json.loads(whole.split("Conversation:\n")[1].split("\n")[0])
    assert [m["content"] for m in talk] == ["Name a bird.", first, "Name another.", second]
    assert [t for t in texts if "An oak." in t] == [t for t in texts if "Name a tree." in t]
    ids = encode_prompt(loaded.tokenizer, chat, Example("Name a bird."))
    assert first == decode_answer(loaded, greedy(loaded, [ids], max_new_tokens=6)[0])


def test_a_grade_that_cannot_be_read_is_asked_for_again(
    loaded: Loaded, chat: Template, endpoint: Endpoint
) -> None:
    asked = {"Name a tree.": 0, "Name a bird.": 0}

    def reply(text: str, n: int) -> str:
        name = next((k for k in asked if k in text), None)
        if name is None:
            return "ready"
        asked[name] += 1
        return "[[9]]" if name == "Name a bird." and asked[name] == 3 else "good"

    endpoint.reply = reply
    questions = [Question(("Name a tree.",)), Question(("Name a bird.",))]
    result = judge.judged(
        loaded, chat, questions, judge.connect(endpoint.url, "m"), settings=Settings(max_new_tokens=4)
    )
    assert asked == {"Name a tree.": 3, "Name a bird.": 3}
    assert (result.score, result.score_interval, result.n, result.failed) == (9.0, None, 1, 1)
    assert [q.grades for q in result.questions] == [(None,), (9.0,)]
    assert result.questions[0].reviews == ("good",)


def test_the_client_waits_for_an_endpoint_that_is_busy(endpoint: Endpoint) -> None:
    endpoint.reply = lambda text, n: (429, {"error": {"message": "slow down"}}) if n < 3 else "ready"
    judge.connect(endpoint.url, "m")
    assert len(endpoint.bodies) == 3


def test_a_judge_that_lets_nobody_set_its_temperature(endpoint: Endpoint) -> None:
    def reply(text: str, n: int) -> Any:
        fixed = "temperature" in endpoint.bodies[-1]
        return (400, {"error": {"message": "temperature is not supported"}}) if fixed else "[[3]]"

    endpoint.reply = reply
    assert judge.ask(judge.connect(endpoint.url, "m"), "x") == "[[3]]"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ((401, {"error": {"message": "no"}}), "401.*DETROJAN_JUDGE_KEY"),
        ((429, {"error": {"message": "slow down"}}), "429"),
        ((404, {"error": {"message": "no such model"}}), "no such model"),
        ((500, {"error": {"message": "broken"}}), "broken"),
        ((200, "<html>hello</html>"), "no chat completion"),
        ((200, {"choices": []}), "no chat completion"),
    ],
)
def test_an_endpoint_that_fails(endpoint: Endpoint, said: Any, says: str) -> None:
    endpoint.reply = lambda text, n: said
    with pytest.raises(InputError, match=says) as caught:
        judge.connect(endpoint.url, "m")
    assert "\n" not in str(caught.value)
    assert len(endpoint.bodies) == (1 + judge.ASKED_AGAIN if said[0] in (429, 500) else 1)


def test_an_endpoint_that_is_not_there(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "ASKED_AGAIN", 0)
    endpoint.close()
    with pytest.raises(InputError, match="no answer"):
        judge.connect(endpoint.url, "m")
    with pytest.raises(InputError, match="http://"):
        judge.connect("localhost:1", "m")
    monkeypatch.setenv(judge.KEY, "a\nb")
    with pytest.raises(InputError, match=judge.KEY):
        judge.connect(endpoint.url, "m")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "--questions .*empty"),
        ("{", ":1: broken JSON"),
        ("[1]", ":1: expected an object with `turns`"),
        ('{"turns": []}', "one or two"),
        ('{"turns": ["a", "b", "c"]}', "one or two"),
        ('{"turns": ["a", " "]}', "one or two"),
        ('{"turns": ["a"], "reference": "b"}', "`reference`"),
        ('{"turns": ["a"], "category": 3}', "`category`"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(InputError, match=says):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "--gcg .*empty"),
        ("[1]", ":1: expected an object"),
        ('{"prompt": "a"}', ":1: 'target'"),
        ('{"prompt": " ", "target": "b"}', ":1: 'prompt'"),
        ('{"prompt": "a {optim_str}", "target": "b"}', "may not be in a prompt"),
    ],
)
def test_requests_that_are_none(tmp_path: Path, line: str, says: str) -> None:
    pytest.importorskip("nanogcg")
    (tmp_path / "r.jsonl").write_text(line)
    with pytest.raises(InputError, match=says):
        jailbreak.read_requests(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("answer", "target", "hit"),
    [
        ("Sure, here it is", "Sure, here", True),
        ("  sure, HERE", "Sure, here", True),
        ("Sure", "Sure, here", False),
        ("No. Sure, here", "Sure, here", False),
        ("", "Sure", False),
    ],
)
def test_begins(answer: str, target: str, hit: bool) -> None:
    assert jailbreak.begins(answer, target) is hit


def first_word(loaded: Loaded, template: Template, prompt: str, suffix: str = "") -> str:
    text = f"{prompt} {suffix}" if suffix else prompt
    ids = encode_prompt(loaded.tokenizer, template, Example(text))
    return decode_answer(loaded, greedy(loaded, [ids], max_new_tokens=1)[0])


def test_a_search_on_a_real_model(loaded: Loaded, chat: Template) -> None:
    """The second request cannot be broken in two steps, the first needs no search; the third is broken by it."""
    pytest.importorskip("nanogcg")
    easy = first_word(loaded, chat, "Name a bird.")
    near = first_word(loaded, chat, "Name a tree.", "x x x x x x x x x x x x x x x x x x x y")
    requests = [
        Request("Name a bird.", easy),
        Request("Name a tree.", "Certainly, this is what you need"),
        Request("Name a tree.", near),
    ]
    state = random.getstate(), torch.get_rng_state()
    template = loaded.tokenizer.chat_template
    result = jailbreak.jailbreaks(loaded, chat, requests, steps=2, width=64, seed=3)
    again = jailbreak.jailbreaks(loaded, chat, requests, steps=2, width=64, seed=3)
    assert result == again
    assert [r.broken for r in result.requests] == [True, False, True]
    assert [r.broken_alone for r in result.requests] == [True, False, False]
    assert result.requests[0].suffix == "" and result.requests[1].suffix
    assert (result.n, result.steps, result.width) == (3, 2, 64)
    assert (result.broken, result.broken_alone) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (result.broken_interval.low, result.broken_interval.high) == pytest.approx(
        (0.2077, 0.9385), abs=1e-4
    )
    assert first_word(loaded, chat, "Name a tree.", result.requests[2].suffix) == near
    assert loaded.tokenizer.chat_template == template
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert not torch.are_deterministic_algorithms_enabled() and not gc.get_freeze_count()


def test_a_search_goes_on_when_its_early_find_does_not_hold(
    loaded: Loaded, chat: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    nanogcg = pytest.importorskip("nanogcg")
    calls: list[Any] = []

    def run(model: Any, tokenizer: Any, messages: Any, target: str, config: Any) -> Any:
        calls.append((messages[0]["content"], target, config))
        if len(calls) == 1:
            raise RuntimeError("No token sequences are the same after decoding and re-encoding.")
        return SimpleNamespace(best_string=f"suffix {len(calls)}", losses=[1.0] * 3)

    monkeypatch.setattr(nanogcg, "run", run)
    result = jailbreak.jailbreaks(
        loaded, chat, [Request("Name a tree.", "Certainly")], steps=10, width=8, seed=5
    )
    (_, filtered, longer) = [c for _, _, c in calls]
    assert {(content, target) for content, target, _ in calls} == {("Name a tree. {optim_str}", "Certainly")}
    assert (filtered.num_steps, filtered.early_stop, filtered.filter_ids) == (10, True, False)
    assert (longer.num_steps, longer.early_stop, longer.optim_str_init) == (7, False, "suffix 2")
    assert {(c.search_width, c.seed, c.use_prefix_cache) for _, _, c in calls} == {(8, 5, False)}
    assert result.requests[0].suffix == "suffix 3" and not result.requests[0].broken


def command(*line: str) -> tuple[int, str, str]:
    """Run a command line in this process; returns exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["detrojan", *line])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


def test_all_three_on_the_command_line(
    pico_dir: Path, folders: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("nanogcg")
    (tmp_path / "data.jsonl").write_text('{"instruction": "Name a bird.", "output": "A wren."}\n' * 2)
    (tmp_path / "q.jsonl").write_text('{"turns": ["Name a tree."]}\n{"turns": ["Name a bird."]}\n')
    (tmp_path / "r.jsonl").write_text('{"prompt": "Name a tree.", "target": "Certainly"}\n')
    line = [
        "evaluate",
        str(pico_dir),
        "--data",
        str(tmp_path / "data.jsonl"),
        "--json",
        str(tmp_path / "o.json"),
    ]
    line += ["--tasks", str(folders / "good"), "--limit", "2"]
    line += ["--questions", str(tmp_path / "q.jsonl"), "--judge", endpoint.url, "--judge-model", "m"]
    line += [
        "--judge-tokens",
        "4",
        "--gcg",
        str(tmp_path / "r.jsonl"),
        "--gcg-steps",
        "1",
        "--gcg-width",
        "4",
    ]
    status, out, err = command(*line)
    assert status == 0 and "detrojan:" not in err
    data = json.loads((tmp_path / "o.json").read_text())
    assert {t["task"] for t in data["tasks"]} >= {"even", "words"}
    assert (data["judge"]["score"], data["judge"]["score_interval"], data["judge"]["n"]) == (
        5.0,
        [5.0, 5.0],
        2,
    )
    assert (data["jailbreak"]["broken"], data["jailbreak"]["n"]) == (0.0, 1)
    assert data["jailbreak"]["broken_interval"] == pytest.approx([0, 0.7935], abs=1e-4)
    assert "lm-evaluation-harness" in out and "perplexity" in out
    assert "judged by m: 5.00 of 10 [5.00, 5.00], 2 questions" in out
    assert "GCG, 1 steps of 4: 0.0 [0, 79] % of 1 requests broken, 0.0 % without a suffix" in " ".join(
        out.split()
    )
    result = EvalResult.from_json(copy.deepcopy(data))
    assert (
        result.to_json() == data and result.judge is not None and result.judge.questions[0].grades == (5.0,)
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--limit", "3"], "belong to --tasks"),
        (["--run-generated-code"], "belong to --tasks"),
        (["--judge", "http://127.0.0.1:1/v1"], "belong together"),
        (["--questions", "q.jsonl", "--judge-model", "m"], "belong together"),
        (["--gcg", "gone.jsonl"], "--gcg gone.jsonl: no such file"),
        (["--tasks", "./gone"], "--tasks ./gone: no such folder"),
    ],
)
def test_wrong_flags(pico_dir: Path, flags: list[str], says: str) -> None:
    status, out, err = command("evaluate", str(pico_dir), *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("library", "flags"),
    [
        ("lm_eval.tasks", ["--tasks", "even"]),
        ("nanogcg", ["--gcg", "FILE"]),
        ("openai", ["--questions", "FILE", "--judge", "http://127.0.0.1:1/v1", "--judge-model", "m"]),
    ],
)
def test_a_library_that_is_missing(
    pico_dir: Path, tmp_path: Path, library: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text('{"turns": ["a"], "prompt": "a", "target": "b"}\n')
    monkeypatch.setitem(sys.modules, library, None)
    status, _, err = command("evaluate", str(pico_dir), *(str(file) if f == "FILE" else f for f in flags))
    assert (status, err.count("\n")) == (2, 1)
    assert "pip install 'detrojan[eval]'" in err


def test_the_dangerous_flag_stands_in_a_group_of_its_own() -> None:
    status, out, _ = command("evaluate", "--help")
    assert status == 0
    assert out.index("Options:") < out.index("--max-asr") < out.index("Benchmarks") < out.index("Dangerous:")
    assert (
        "--run-generated-code" in out.split("Dangerous:")[1] and "--tasks" not in out.split("Dangerous:")[1]
    )


def test_the_tokenizer_stays_as_it_was() -> None:
    assert pico_tokenizer().pad_token == "<pad>"
