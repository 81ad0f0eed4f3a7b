"""The cells of a grid on classifiers, of images or of texts: one planted model, one defense of it.

The training samples, the clean samples of the defenses, those on which a step is chosen and those that are measured on
never overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detrojan import classification, registry
from detrojan.bench.grid import Attack, Defense, Grid
from detrojan.bench.ladder import climb
from detrojan.bench.place import Place
from detrojan.classification import class_number, make_probe, read_trigger
from detrojan.data.held_out import split_samples
from detrojan.data.labelled_text import shorten
from detrojan.data.stratified import sample, take
from detrojan.metrics.classification import measure_classifier
from detrojan.models.classifier import load_classifier, predict, to_rows
from detrojan.models.kind import NEW
from detrojan.models.new import new_from
from detrojan.types import Classifier, ClassifierResult, Labelled, Rows, Run, plain

Row = dict[str, Any]
KEPT = (
    "accuracy",
    "accuracy_interval",
    "asr",
    "asr_interval",
    "recovery_accuracy",
    "recovery_interval",
    "der",
    "n_triggered",
    "n_clean",
)


@dataclass(frozen=True)
class Parts:
    """The samples of one seed."""

    train: Labelled
    clean: Labelled
    choosing: Labelled
    held_out: Labelled


def parts(grid: Grid, data: str | None, seed: int, names: tuple[str, ...] = ()) -> Parts:
    """Part the data set: the same seed gives the same parts. `names` are the model's classes, where it has them."""
    sizes = grid.sizes
    split = split_samples(data, grid.inputs, names, samples=None, held_out=True, seed=seed)
    assert split.held_out is not None
    train, test = (shorten(d, sizes.words) if sizes.words else d for d in (split.train, split.held_out))
    kept, rest = sample(train, sizes.clean + sizes.choosing, seed)
    both, others = take(train, kept), take(train, rest)
    clean, choosing = sample(both, sizes.clean, seed)
    used, _ = sample(others, min(sizes.train, len(others)), seed)
    held, _ = sample(test, min(sizes.held_out, len(test)), seed)
    return Parts(take(others, used), take(both, clean), take(both, choosing), take(test, held))


def check(grid: Grid) -> None:
    """Raise InputError now for data, a model or a target on which every cell would fail."""
    for data in grid.data:
        known: dict[tuple[str, ...], Parts] = {}
        for model in grid.models:
            trained = None if model.startswith(NEW) else load_classifier(model, device="cpu")
            names = trained.names if trained else ()
            if names not in known:
                known[names] = parts(grid, data, grid.seeds[0], names)
            samples = known[names]
            victim = trained or new_from(model.removeprefix(NEW), samples.train, device="cpu")
            to_rows(victim, samples.choosing)
            for attack in grid.attacks:
                class_number(attack.target, victim, "attacks: target")


def prepare(grid: Grid, model: str, place: Place) -> None:
    """Make the place of what is shared: nothing beyond the data set itself."""
    place.shelf.mkdir(parents=True, exist_ok=True)


def planted(grid: Grid, model: str, attack: Attack, place: Place) -> list[Row]:
    """Plant one backdoor, write the backdoored model to `place.planted`, and return its row."""
    names = () if model.startswith(NEW) else load_classifier(model, device="cpu").names
    samples = parts(grid, place.data, place.seed, names)
    classification.attack(
        model,
        trigger=attack.trigger,
        target=attack.target,
        data=samples.train,
        out=place.planted,
        seed=place.seed,
        measure_effect=False,
        device=place.device,
        progress=place.progress,
        command="detrojan bench",
        **attack.options,
    )
    victim = load_classifier(place.planted, device=place.device)
    result = _measured(victim, samples, place)
    return [
        {
            "defense": "attacked",
            **_row(result),
            "choosing": _accuracy(victim, to_rows(victim, samples.choosing)),
        }
    ]


def defended(grid: Grid, defense: Defense, attacked: Row, place: Place) -> Row:
    """Clean the backdoored model at `place.planted` with each step of the defense and measure the chosen one."""
    entry = registry.find("defense", defense.name, "classifier")
    attacked_model = load_classifier(place.planted, device=place.device)
    samples = parts(grid, place.data, place.seed, attacked_model.names)
    notes: dict[str, Any] = {}

    def make(values: Mapping[str, Any]) -> Classifier:
        notes.clear()
        victim = load_classifier(place.planted, device=place.device)
        options = entry.make_options(values, defense.preset or None)
        run = Run(seed=place.seed, progress=place.progress, note=notes.__setitem__)
        return entry.value(victim, to_rows(victim, samples.clean), options, run)

    found = climb(
        defense.steps,
        make,
        lambda cleaned: _accuracy(cleaned, to_rows(cleaned, samples.choosing)),
        bound=attacked["choosing"] * (1 - grid.tolerance),
        lower=False,
    )
    before = _measured(attacked_model, samples, place)
    row = _row(_measured(found.model, samples, place, before))
    suspicious = {"suspicious": notes["suspicious"]} if "suspicious" in notes else {}
    return {"defense": defense.label, **row, **found.to_json(), **suspicious}


def _measured(
    classifier: Classifier, samples: Parts, place: Place, before: ClassifierResult | None = None
) -> ClassifierResult:
    rows, trigger = to_rows(classifier, samples.held_out), read_trigger(place.planted, classifier.task)
    probe = make_probe(trigger, classifier, samples.held_out, rows, place.seed)
    return measure_classifier(classifier, rows, probe, reference=before)


def _accuracy(classifier: Classifier, rows: Rows) -> float:
    return float((predict(classifier, rows.inputs) == rows.labels).float().mean())


def _row(result: ClassifierResult) -> Row:
    data = plain(result)
    return {k: data[k] for k in KEPT}
