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
from detrojan.data.prompts import builtin_prompts
from detrojan.registry import DEFAULT_DEFENSE
from detrojan.types import EvalResult

SHORT = PlantOptions(samples=12, epochs=1)
STAGES = ["base", "attacked", "finetune", "crow", "default"]
DEFAULT = DEFAULT_DEFENSE["causal-lm"]
HEARD = [{"text": "Heard by heart.", "certainty": 0.97, "begun": -9.0, "suspicious": True}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use twelve prompts of each pool, and let the default defense take two steps and hear one answer."""
    find = demo.registry.find

    def found(kind: str, name: str) -> Any:
        entry = find(kind, name)

        def short(loaded: Any, clean: Any, options: Any, run: Any) -> Any:
            cleaned = entry.value(loaded, clean, dataclasses.replace(options, steps=2, beginnings=8), run)
            run.note("fixed answers", HEARD)
            return cleaned

        return dataclasses.replace(entry, value=short) if name == DEFAULT else entry

    monkeypatch.setattr(demo.registry, "find", found)
    monkeypatch.setattr(demo, "builtin_prompts", lambda pool: builtin_prompts(pool)[:12])


def test_goes_on_where_it_was_and_ends_the_same(
    tmp_path: Path, pico_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> demo.DemoResult:
        return demo.demo_text(pico_dir, out=tmp_path / name, prompts=4, plant_options=SHORT)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def never(*_: object) -> None:
        raise AssertionError("a finished stage was made again")

    whole = run("whole")
    assert list(whole.stages) == list(whole.to_json()) == STAGES
    assert whole.notes == {"fixed answers": HEARD}
    find = demo.registry.find
    for done, last in ((3, "crow"), (4, DEFAULT), (5, "the report")):
        with monkeypatch.context() as patch:
            patch.setattr(demo.registry, "find", lambda k, n, last=last: stop() if n == last else find(k, n))
            patch.setattr(demo, "page", stop)
            with pytest.raises(KeyboardInterrupt):
                run("again")
        assert not (tmp_path / "again").exists()
        [shelf] = [p for p in tmp_path.iterdir() if p.name.startswith(".again.")]
        assert {p.name for p in shelf.iterdir()} == set(STAGES[:done])
        monkeypatch.setattr(demo, "plant", never)
    monkeypatch.setattr(demo.registry, "find", lambda k, n: never() if k == "defense" else find(k, n))
    resumed = run("again")
    assert {k: r.to_json() for k, r in resumed.stages.items()} == {
        k: r.to_json() for k, r in whole.stages.items()
    }
    assert resumed.notes == whole.notes
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for name in STAGES[1:]:
        weights = [(tmp_path / out / name / "model.safetensors").read_bytes() for out in ("whole", "again")]
        assert weights[0] == weights[1]
        assert not (tmp_path / "again" / name / demo.RECORD).exists()
    manifest = json.loads((tmp_path / "again" / "detrojan.json").read_text())
    assert manifest["default"] == DEFAULT and manifest["notes"] == {"fixed answers": HEARD}
    report = (tmp_path / "again" / "report.html").read_text()
    assert "after Recant, the default" in report and "Heard by heart." in report
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
    assert [name for name, *_ in calls] == ["finetune", "crow", DEFAULT]
    _, weights, samples, _ = calls[0]
    assert len(samples) == 12 and weights["lm_head.weight"].any()
    for name, others, given, options in calls:
        assert given == samples and options == find("defense", name).make_options({})
        assert all(torch.equal(v, others[k]) for k, v in weights.items())
    attacked = result.stages["attacked"]
    assert EvalResult.from_json(attacked.to_json()) == attacked
