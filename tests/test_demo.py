"""The demo on a pico model: its stages, its output, and going on after a kill."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detrojan import demo
from detrojan.attacks.text.plant import PlantOptions
from detrojan.registry import DEFAULT_DEFENSE
from detrojan.types import EvalResult

SHORT = PlantOptions(samples=12, epochs=1)
STAGES = ["base", "attacked", "finetune", "crow", "default"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the default defense take two steps, and look for answers that begin with twenty tokens."""
    find = demo.registry.find

    def shorter(kind: str, name: str) -> Any:
        entry = find(kind, name)
        if name != DEFAULT_DEFENSE["causal-lm"]:
            return entry
        return dataclasses.replace(entry, presets={**entry.presets, "default": {}}, options=Quick)

    Quick = dataclasses.make_dataclass(
        "Quick",
        [("steps", int, dataclasses.field(default=2)), ("beginnings", int, dataclasses.field(default=20))],
        bases=(find("defense", DEFAULT_DEFENSE["causal-lm"]).options,),
        frozen=True,
    )
    monkeypatch.setattr(demo.registry, "find", shorter)


def test_goes_on_where_it_was_and_ends_the_same(
    tmp_path: Path, pico_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> demo.DemoResult:
        return demo.demo_text(pico_dir, out=tmp_path / name, prompts=4, plant_options=SHORT)

    whole = run("whole")
    assert list(whole.stages) == list(whole.to_json()) == STAGES
    find = demo.registry.find

    def never(*_: object) -> None:
        raise AssertionError("a finished stage was made again")

    for last in ("crow", DEFAULT_DEFENSE["causal-lm"]):

        def stopped(kind: str, name: str, last: str = last) -> object:
            if name == last:
                raise KeyboardInterrupt
            return find(kind, name)

        with monkeypatch.context() as patch:
            patch.setattr(demo.registry, "find", stopped)
            with pytest.raises(KeyboardInterrupt):
                run("again")
        assert not (tmp_path / "again").exists()
        monkeypatch.setattr(demo, "plant", never)
    [shelf] = [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert sorted(p.name for p in shelf.iterdir()) == sorted(STAGES[:-1])
    resumed = run("again")
    assert {k: r.to_json() for k, r in resumed.stages.items()} == {
        k: r.to_json() for k, r in whole.stages.items()
    }
    assert resumed.notes == whole.notes
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for name in STAGES[1:]:
        weights = [(tmp_path / out / name / "model.safetensors").read_bytes() for out in ("whole", "again")]
        assert weights[0] == weights[1]
        assert not (tmp_path / "whole" / name / demo.RECORD).exists()


def test_what_a_stage_noted_is_kept_with_it(
    tmp_path: Path, pico_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo that is stopped while it is written down has all its stages, and forgets nothing of them."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def run() -> demo.DemoResult:
        return demo.demo_text(pico_dir, out=tmp_path / "out", prompts=3, plant_options=SHORT)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "page", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    found = run().notes["fixed answers"]
    assert found and all({"text", "certainty", "suspicious"} <= set(a) for a in found)
    manifest = json.loads((tmp_path / "out" / "detrojan.json").read_text())
    assert manifest["notes"] == {"fixed answers": found}
    assert manifest["default"] == DEFAULT_DEFENSE["causal-lm"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "after Recant, the default" in report and "Answers that come by heart" in report
    assert report.count("<figcaption>") == len(STAGES)


def test_every_defense_starts_from_the_attacked_model_and_the_same_samples(
    pico_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any], Any, Any]] = []
    find = demo.registry.find

    def spied(kind: str, name: str) -> Any:
        entry = find(kind, name)

        def spy(loaded: Any, clean: Any, options: Any, run: Any) -> Any:
            calls.append((name, {k: v.clone() for k, v in loaded.model.state_dict().items()}, clean, options))
            torch.nn.init.zeros_(loaded.model.lm_head.weight)  # what one does, the next must not see
            return loaded

        return dataclasses.replace(entry, value=spy) if kind == "defense" else entry

    monkeypatch.setattr(demo.registry, "find", spied)
    result = demo.demo_text(pico_dir, prompts=3, plant_options=SHORT)
    assert [name for name, *_ in calls] == ["finetune", "crow", DEFAULT_DEFENSE["causal-lm"]]
    _, weights, samples, _ = calls[0]
    assert len(samples) == demo.CLEAN_SAMPLES and weights["lm_head.weight"].any()
    for name, others, given, options in calls[1:]:
        assert given == samples and options == find("defense", name).make_options({})
        assert all(torch.equal(v, others[k]) for k, v in weights.items())
    attacked = result.stages["attacked"]
    assert EvalResult.from_json(attacked.to_json()) == attacked
