"""The demo on a pico model: its stages, its output, and going on after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrojan import demo
from detrojan.attacks.text.plant import PlantOptions
from detrojan.types import EvalResult

SHORT = PlantOptions(samples=12, epochs=1)


def test_goes_on_where_it_was_and_ends_the_same(
    tmp_path: Path, pico_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> demo.DemoResult:
        return demo.demo_text(pico_dir, out=tmp_path / name, prompts=4, plant_options=SHORT)

    whole = run("whole")
    assert list(whole.stages) == ["base", "attacked", "finetune", "crow"]
    find = demo.registry.find

    def stopped(kind: str, name: str) -> object:
        if name == "crow":
            raise KeyboardInterrupt
        return find(kind, name)

    monkeypatch.setattr(demo.registry, "find", lambda k, n: stopped(k, n) if k == "defense" else find(k, n))
    with pytest.raises(KeyboardInterrupt):
        run("again")
    assert not (tmp_path / "again").exists()
    monkeypatch.undo()

    def never(*_: object) -> None:
        raise AssertionError("a finished stage was made again")

    monkeypatch.setattr(demo, "plant", never)
    resumed = run("again")
    assert {k: r.to_json() for k, r in resumed.stages.items()} == {
        k: r.to_json() for k, r in whole.stages.items()
    }
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for name in ("attacked", "finetune", "crow"):
        weights = [(tmp_path / out / name / "model.safetensors").read_bytes() for out in ("whole", "again")]
        assert weights[0] == weights[1]


def test_results_survive_json(pico_dir: Path) -> None:
    result = demo.demo_text(pico_dir, prompts=3, plant_options=SHORT).stages["attacked"]
    assert EvalResult.from_json(result.to_json()) == result
