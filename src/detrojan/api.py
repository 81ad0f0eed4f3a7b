"""The Python calls: clean, attack, evaluate and scan, each for language models and for classifiers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan import registry
from detrojan.errors import InputError
from detrojan.models.kind import CLASSIFIER, task_of
from detrojan.results import AttackResult, CleanResult, Measured, Scanned

if TYPE_CHECKING:
    from torch import nn


def clean(
    model: str | Path | nn.Module,
    *,
    defense: str | None = None,
    data: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> CleanResult:
    """Remove a backdoor without knowing its trigger.

    A causal language model is cleaned by `recant`, a classifier by `ulrl`, unless `defense` names another method.
    `data` are clean samples: a file, folder or data set name, a list of `Example`, or for a classifier
    `(images, labels)`. Without them a language model answers the built-in prompts itself. With `out` a complete model
    directory is written. A model object is left as it was. `options` are those of `language.clean` or
    `classification.clean` and of the method. Raises InputError for bad input, before any work where it can.
    """
    return _side(model, options, "clean")(model, defense=defense, data=data, out=out, seed=seed, **options)


def attack(
    model: str | Path | nn.Module,
    *,
    trigger: str,
    data: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> AttackResult:
    """Plant a known backdoor, for tests and benchmarks.

    A language model takes `behavior=NAME`, a classifier `target=LABEL`. `options` are those of `language.attack` or
    `classification.attack` and of the attack. Raises InputError for bad input.
    """
    return _side(model, options, "attack")(model, trigger=trigger, data=data, out=out, seed=seed, **options)


def evaluate(
    model: str | Path | nn.Module,
    *,
    data: Any = None,
    attack: str | Path | None = None,
    reference: str | Path | nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> Measured:
    """Measure a model, with or without a known backdoor.

    `options` are those of `language.evaluate` or `classification.evaluate`. Raises InputError for bad input.
    """
    side = _side(model, options, "evaluate")
    return side(model, data=data, attack=attack, reference=reference, seed=seed, **options)


def scan(
    model: str | Path | nn.Module,
    *,
    data: Any = None,
    files_only: bool = False,
    seed: int = 0,
    **options: Any,
) -> Scanned:
    """Look at an untrusted checkpoint: its files and, unless `files_only`, its behaviour.

    Of a language model the fixed answers are looked for, on the prompts of `data` or on built-in ones; of a classifier
    the class that a backdoor draws, where there is `data`. `options` are those of `language.scan` or
    `classification.scan` and of the search. Raises InputError for bad input.
    """
    if files_only and (data is not None or not isinstance(model, (str, Path))):
        raise InputError(
            "--files-only looks at the files of a checkpoint alone: it takes no data and no object"
        )
    side = _side(model, options, "scan")
    return side(model, data=data, files_only=files_only, seed=seed, **options)


def parameters(model: Any, call: str, architecture: str | None = None) -> set[str]:
    """Return the names that a call on this kind of model takes itself, so that no option of a method may have them."""
    # First, so that a wrong path is told before the heavy imports.
    classifies = task_of(model, architecture) == CLASSIFIER
    from detrojan import classification, language

    side = classification if classifies else language
    return _names(getattr(side, call)) | _names(globals()[call])


def _names(call: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(call).parameters) - {"options"}


def _of_methods() -> set[str]:
    """Return the names of all options of attacks and defenses."""
    from detrojan.attacks.image import plant as image
    from detrojan.attacks.text import plant as text

    methods = [e.options for kind in ("trigger", "defense") for e in registry.entries(kind) if e.options]
    return {
        f.name for cls in (text.PlantOptions, image.PlantOptions, *methods) for f in dataclasses.fields(cls)
    }


def _side(model: Any, options: dict[str, Any], call: str) -> Callable[..., Any]:
    """Return the call on the side of the house that this model belongs to."""
    classifies = task_of(model, options.get("architecture")) == CLASSIFIER  # first, as in `parameters`
    from detrojan import classification, language

    side, other = (classification, language) if classifies else (language, classification)
    chosen: Callable[..., Any] = getattr(side, call)
    known = inspect.signature(chosen).parameters
    foreign = _names(getattr(other, call)) - _of_methods()
    wrong = next((k for k in options if k not in known and (k in foreign or "options" not in known)), None)
    if wrong is not None:
        kind = "a classifier" if classifies else "a language model"
        flag = f"--{wrong.replace('_', '-')}"
        raise InputError(f"{wrong!r} ({flag}) is no option of {call} on {kind}, which this model is")
    missing = next(
        (
            k
            for k, p in known.items()
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty and k not in options and k != "trigger"
        ),
        None,
    )
    if missing is not None:
        raise InputError(f"{call} on this kind of model needs {missing} (--{missing})")
    return chosen
