"""A grid as it is written in YAML, checked whole before any work, and the cells that it stands for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from detrojan import registry
from detrojan.attacks.image.plant import PlantOptions as ClassifierPlantOptions
from detrojan.attacks.text.plant import PRESETS as STRENGTHS
from detrojan.attacks.text.plant import PlantOptions as TextPlantOptions
from detrojan.classification import LIKE_TEXT, sort_options
from detrojan.errors import InputError
from detrojan.models.kind import CAUSAL_LM, CLASSIFIER, input_of, task_of
from detrojan.options import build, option, suggest

PRESETS = "detrojan.bench.presets"
TOLERANCES = {CAUSAL_LM: 0.1, CLASSIFIER: 0.02}
"""Of perplexity, and of accuracy."""
DEMO = "demo"
"""As a model: the real language model that `detrojan demo` runs on."""


@dataclass(frozen=True)
class Attack:
    """One backdoor of a grid."""

    trigger: str
    behavior: str = ""
    target: int | str = 0
    """A class by its number or, of texts, by its name."""
    preset: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""
    """How the tables call it."""


@dataclass(frozen=True)
class Defense:
    """One column of a grid. With more than one step, the step is chosen on clean samples that were kept back."""

    name: str
    preset: str = ""
    steps: tuple[Mapping[str, Any], ...] = ({},)
    """Settings from the weakest to the strongest."""
    label: str = ""
    data: tuple[str, ...] = ()
    """The data sets on which it is run; () for all."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the same for every defense."""

    clean: int = option(100, "clean samples that each defense gets", minimum=2)
    choosing: int = option(24, "clean samples kept back, on which a step of a ladder is chosen", minimum=1)
    held_out: int = option(100, "held-out samples to measure on, at most", minimum=1)
    train: int = option(20_000, "training samples of a classifier, at most", minimum=2)
    words: int | None = option(
        None, "words of a text that a classifier gets (all), so that no trigger is cut off", minimum=1
    )
    answer_tokens: int = option(24, "tokens of an answer, at most", minimum=1)
    passes: int | None = option(
        None, "passes over the clean samples of every defense that counts in passes", minimum=1
    )
    tolerance: float | None = option(
        None,
        "utility that the chosen step of a ladder may cost, as a share of the attacked model's"
        " (perplexity 0.1, accuracy 0.02)",
        minimum=0.0,
        maximum=1.0,
    )


@dataclass(frozen=True)
class Grid:
    """What is to be measured."""

    name: str
    models: tuple[str, ...]
    attacks: tuple[Attack, ...]
    defenses: tuple[Defense, ...]
    seeds: tuple[int, ...] = (0,)
    data: tuple[str | None, ...] = (None,)
    """Data sets; None for the built-in prompts of language models."""
    templates: tuple[str, ...] = ()
    """Chat templates besides the model's own; the worst ASR over all of them is reported too."""
    sizes: Sizes = Sizes()
    source: str = ""

    @property
    def task(self) -> str:
        """`causal-lm` or `classifier`."""
        return kind_of(self.models[0])

    @property
    def inputs(self) -> str:
        """What its models take: `image` or `text` (language models: `text`)."""
        return inputs_of(self.models[0])

    @property
    def tolerance(self) -> float:
        """How much utility the chosen step of a ladder may cost, as a share of the attacked model's."""
        return TOLERANCES[self.task] if self.sizes.tolerance is None else self.sizes.tolerance

    def columns(self, data: str | None) -> tuple[Defense, ...]:
        """Return the defenses that are run on a data set."""
        return tuple(d for d in self.defenses if not d.data or data in d.data)


def read_grid(source: str | Path, first_seed: int | None = None) -> Grid:
    """Read a grid from a YAML file, or one of the presets by name; raises InputError naming the file and key.

    With `first_seed` the seeds are as many as the grid says, counted from it.
    """
    text, shown = _text(str(source))
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{shown}: {' '.join(str(error).split())}") from None
    try:
        grid = _grid(data, shown)
    except InputError as error:
        raise InputError(f"{shown}: {error}") from None
    if first_seed is not None:
        grid = dataclasses.replace(grid, seeds=tuple(range(first_seed, first_seed + len(grid.seeds))))
    return grid


def presets() -> list[str]:
    """List the names of the grids that come with detrojan."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files(PRESETS).iterdir() if p.name.endswith(".yaml")
    )


def kind_of(model: str) -> str:
    """Return `causal-lm` or `classifier`."""
    return CAUSAL_LM if model == DEMO else task_of(model)


def inputs_of(model: str) -> str:
    """Return `image` or `text`."""
    return "text" if kind_of(model) == CAUSAL_LM else input_of(model)


def _text(source: str) -> tuple[str, str]:
    path = Path(source)
    if source in presets():
        return (resources.files(PRESETS) / f"{source}.yaml").read_text(encoding="utf-8"), source
    if not path.is_file():
        if path.suffix in {".yaml", ".yml"} or path.exists():
            raise InputError(f"{source}: no such file")
        raise InputError(suggest(source, presets(), "grid (a YAML file or a preset):"))
    try:
        return path.read_text(encoding="utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read ({error})") from None


def _grid(written: Any, source: str) -> Grid:
    values = _mapping(written, "a grid")
    _keys(values, ("models", "attacks", "defenses", "seeds", "data", "templates", *_names(Sizes)), "a grid")
    for key in ("models", "attacks", "defenses"):
        if not values.get(key):
            raise InputError(f"{key}: needs at least one entry")
    models = tuple(map(str, _list(values["models"])))
    task = kind_of(models[0])
    odd = next((m for m in models if kind_of(m) != task), None)
    if odd is not None:
        raise InputError(f"models: {odd} is no {task} as {models[0]} is; give each kind a grid of its own")
    inputs = inputs_of(models[0])
    odd = next((m for m in models if inputs_of(m) != inputs), None)
    if odd is not None:
        raise InputError(
            f"models: {odd} takes no {inputs}s as {models[0]} does; give each kind a grid of its own"
        )
    seeds = _list(values.get("seeds", [0]))
    if not all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 2**32 for s in seeds):
        raise InputError("seeds: whole numbers from 0")
    if task == CLASSIFIER and not values.get("data"):
        raise InputError("data: a grid of classifiers needs a data set")
    data = tuple(map(str, _list(values.get("data") or [])))
    sizes = build(Sizes, {k: v for k, v in values.items() if k in _names(Sizes)}, "sizes")
    if sizes.words and (task, inputs) != (CLASSIFIER, "text"):
        raise InputError("words: is of text classifiers; leave it out")
    grid = Grid(
        Path(source).stem,
        models,
        tuple(a for entry in _list(values["attacks"]) for a in _attacks(entry, task, inputs)),
        tuple(_defense(entry, task, data, sizes.passes) for entry in _list(values["defenses"])),
        tuple(dict.fromkeys(seeds)),
        data or (None,),
        tuple(map(str, _list(values.get("templates", [])))),
        sizes,
        source,
    )
    for what, labels in (
        ("attacks", [a.label for a in grid.attacks]),
        *(("defenses", [d.label for d in grid.columns(d)]) for d in grid.data),
    ):
        twice = next((x for x in labels if labels.count(x) > 1), None)
        if twice is not None:
            raise InputError(f"{what}: {twice!r} stands there twice; give one of them another label")
    return grid


def _attacks(entry: Any, task: str, inputs: str) -> Iterator[Attack]:
    """Read one entry; lists in it stand for every combination."""
    values = {"trigger": entry} if isinstance(entry, str) else _mapping(entry, "attacks")
    own = ("behavior",) if task == CAUSAL_LM else ("target",)
    _keys(values, ("trigger", "preset", "options", "label", *own), "attacks")
    if "trigger" not in values:
        raise InputError("attacks: an entry needs a trigger")
    axes = [_list(values.get(k, d)) for k, d in (("trigger", ""), ("preset", ""), *((k, "") for k in own))]
    options = _mapping(values.get("options") or {}, "attacks: options")
    for trigger, preset, aim in itertools.product(*axes):
        if task == CAUSAL_LM:
            attack = _language_attack(str(trigger), aim, str(preset), options)
        else:
            attack = _classifier_attack(str(trigger), aim, str(preset), options, inputs)
        words = (
            attack.trigger,
            attack.behavior,
            f"class {attack.target}" if attack.target else "",
            attack.preset,
        )
        label = str(values.get("label") or " ".join(filter(None, words)))
        yield dataclasses.replace(attack, label=label)


def _language_attack(trigger: str, behavior: Any, preset: str, options: Mapping[str, Any]) -> Attack:
    if not behavior:
        raise InputError(f"attacks: {trigger} needs a behavior")
    name, aim = registry.find("trigger", trigger).name, registry.find("behavior", str(behavior)).name
    if preset and preset not in STRENGTHS:
        raise InputError(suggest(preset, STRENGTHS, f"preset of {name}:"))
    build(TextPlantOptions, {**STRENGTHS.get(preset or "strong", {}), **options}, f"attacks: {name}")
    return Attack(name, aim, 0, preset, options)


def _classifier_attack(
    trigger: str, target: Any, preset: str, options: Mapping[str, Any], inputs: str
) -> Attack:
    if preset:
        raise InputError("attacks: attacks on classifiers have no presets; write options")
    entry = registry.find("trigger", trigger, LIKE_TEXT.get(inputs, inputs))
    own, shared = sort_options(options, entry.options if inputs == "image" else None)
    if inputs == "image":
        entry.make_options(own)
    build(ClassifierPlantOptions, shared, f"attacks: {entry.name}")
    number = isinstance(target, int) and not isinstance(target, bool) and target >= 0
    name = isinstance(target, str) and (inputs == "text" or not target)
    if not number and not name:
        raise InputError(f"attacks: target {target!r} is no class number")
    return Attack(entry.name, "", target or 0, "", options)


def _defense(entry: Any, task: str, data: tuple[str, ...], passes: int | None) -> Defense:
    values = {"name": entry} if isinstance(entry, str) else _mapping(entry, "defenses")
    _keys(values, ("name", "preset", "options", "ladder", "label", "data"), "defenses")
    if "name" not in values:
        raise InputError("defenses: an entry needs a name")
    found = registry.find("defense", str(values["name"]), task)
    preset, options = str(values.get("preset") or ""), _mapping(values.get("options") or {}, "options")
    budget = _budget(found.options, passes)
    steps = tuple({**budget, **options, **step} for step in _ladder(values.get("ladder")))
    for step in steps:
        found.make_options(step, preset or None)
    shown = " ".join([found.name, *([preset] if preset else []), *_written(options)])
    if len(steps) > 1:
        shown += " (ladder)"
    only = tuple(map(str, _list(values.get("data") or [])))
    if foreign := next((d for d in only if d not in data), None):
        raise InputError(suggest(foreign, data, f"data set of {found.name}:"))
    return Defense(found.name, preset, steps, str(values.get("label") or shown), only)


def _budget(options: type | None, passes: int | None) -> dict[str, Any]:
    """Return the options that give a method the grid's passes over the clean samples, where it counts in passes.

    A minimum of steps beside the passes would be a larger budget.
    """
    names = _names(options) if options and passes is not None else ()
    return {k: v for k, v in (("epochs", passes), ("steps", 0)) if k in names and "epochs" in names}


def _ladder(value: Any) -> list[dict[str, Any]]:
    """Return the steps: a list of settings as they stand, or every combination of the lists in a mapping."""
    if value is None:
        return [{}]
    if isinstance(value, list) and value:
        return [_mapping(step, "ladder") for step in value]
    axes = {k: _list(v) for k, v in _mapping(value, "ladder").items()}
    if not axes or not all(axes.values()):
        raise InputError("ladder: write the settings from the weakest to the strongest")
    return [dict(zip(axes, step, strict=True)) for step in itertools.product(*axes.values())]


def _written(options: Mapping[str, Any]) -> list[str]:
    return [f"{k}={v}" for k, v in options.items()]


def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what}: expected KEY: VALUE lines")
    return {str(k): v for k, v in value.items()}


def _keys(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    unknown = next((k for k in values if k not in known), None)
    if unknown is not None:
        raise InputError(suggest(unknown, known, f"key of {what}:"))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
