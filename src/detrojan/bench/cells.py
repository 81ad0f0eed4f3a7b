"""The cells of a grid: what each one is, and the identity under which its result is kept.

An identity is a hash of all that changes a result, and of nothing else: labels, the other cells and the order of the
grid are not in it. So planted models are shared, a grid can grow, and an interrupted run goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detrojan import manifest
from detrojan.bench import classifier_cells, language_cells
from detrojan.bench.grid import Attack, Defense, Grid
from detrojan.bench.place import Place
from detrojan.errors import InputError
from detrojan.models.kind import CLASSIFIER, NEW
from detrojan.models.load import locate
from detrojan.types import Progress


@dataclass(frozen=True)
class Cell:
    """One piece of work: the answers that a model's cells share, a planted model, or a defense of it."""

    key: str
    model: str
    data: str | None = None
    attack: Attack | None = None
    seed: int = 0
    defense: Defense | None = None
    needs: str = ""
    """The key of the cell that must be done before."""
    shelf: str = ""
    """The key of what all cells of the model share."""


def cells(grid: Grid) -> Iterator[Cell]:
    """Yield every piece of work, each after what it needs, in the order of the tables."""
    sizes, versions = grid.sizes, manifest.versions()
    shared = [grid.task, sizes.clean, sizes.choosing, sizes.held_out, sizes.answer_tokens, sizes.train]
    shared += [sizes.words] if sizes.words else []
    prints = {data: fingerprint(data) for data in grid.data}
    for model, data in itertools.product(grid.models, grid.data):
        shelf = manifest.digest("shelf", *shared, _model(grid, model), prints[data], versions)
        yield Cell(shelf, model, data, shelf=shelf)
        for attack, seed in itertools.product(grid.attacks, grid.seeds):
            planted = manifest.digest(shelf, replace(attack, label=""), seed, grid.templates)
            yield Cell(planted, model, data, attack, seed, needs=shelf, shelf=shelf)
            for defense in grid.columns(data):
                tolerance = grid.tolerance if len(defense.steps) > 1 else None
                key = manifest.digest(planted, defense.name, defense.preset, defense.steps, tolerance)
                yield Cell(key, model, data, attack, seed, defense, planted, shelf)


def fingerprint(source: str | None) -> Any:
    """Return the hashes of a local file or folder, or the name of anything else."""
    path = Path(source) if source else None
    if path is None or not path.exists():
        return source
    return manifest.hashes([path] if path.is_file() else path.rglob("*"), path if path.is_dir() else None)


def check(grid: Grid) -> None:
    """Raise InputError now, before any work, for what would make every cell fail."""
    side: Any = classifier_cells if grid.task == CLASSIFIER else language_cells
    try:
        side.check(grid)
    except InputError as error:
        raise InputError(f"{grid.source}: {error}") from None


def perform(
    grid: Grid, cell: Cell, out: Path, done: dict[str, Any], device: str, progress: Progress
) -> list[dict[str, Any]]:
    """Do one piece of work and return its rows (none for the shared part); `done` is the record of what it needs."""
    side: Any = classifier_cells if grid.task == CLASSIFIER else language_cells
    place = Place(
        cell.data,
        cell.seed,
        out / "shared" / cell.shelf,
        out / "planted" / (cell.needs if cell.defense else cell.key),
        device,
        progress,
    )
    if cell.attack is None:
        side.prepare(grid, cell.model, place)
        return []
    if cell.defense is None:
        rows: list[dict[str, Any]] = side.planted(grid, cell.model, cell.attack, place)
        return rows
    attacked = next(r for r in done["rows"] if r["defense"] == "attacked")
    return [side.defended(grid, cell.defense, attacked, place)]


def _model(grid: Grid, model: str) -> Any:
    """Return what tells a model apart: the hashes of its weights, or the name of an architecture."""
    if model.startswith(NEW):
        return model
    path = locate(language_cells.source(model) if grid.task != CLASSIFIER else model)
    return fingerprint(str(path))
