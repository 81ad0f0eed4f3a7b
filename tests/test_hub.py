"""Hub names, on a local copy of the hub's cache: nothing here reaches a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from detrojan.errors import InputError
from detrojan.models.load import load

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, pico_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in the hub's own layout that holds `someone/pico`."""
    repo = tmp_path / "hub" / "models--someone--pico"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISION)
    shutil.copytree(pico_dir, repo / "snapshots" / REVISION)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repo


def test_hub_name_loads_from_the_cache(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load("someone/pico")
    assert loaded.source == loaded.model_dir == "someone/pico"
    assert [f.name for f in loaded.files] == ["model.safetensors"]


def test_unknown_hub_name_is_an_input_error(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="someone/else"):
        load("someone/else")
