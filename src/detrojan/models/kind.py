"""Which side of the house a model belongs to: causal language models or classifiers, of images or of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detrojan.errors import InputError
from detrojan.models.load import locate, read_json
from detrojan.options import suggest

CAUSAL_LM, CLASSIFIER = "causal-lm", "classifier"
NEW = "new:"
"""Before an architecture: a classifier that is trained from nothing."""
HEADS = ("ForImageClassification", "ForSequenceClassification", "ForImageClassificationWithTeacher")


def task_of(source: Any, architecture: str | None = None) -> str:
    """Return `causal-lm` or `classifier` for a directory, hub name, file or object; raises InputError for none.

    Nothing but the configuration is read. What is neither is left to the language side, which says what is wrong.
    """
    if not isinstance(source, (str, Path)):
        return CAUSAL_LM if getattr(source, "can_generate", bool)() else CLASSIFIER
    if architecture or str(source).startswith(NEW):
        return CLASSIFIER
    path = locate(str(source))
    if path.is_file():
        return CAUSAL_LM if path.suffix == ".gguf" else CLASSIFIER
    if (path / "adapter_config.json").is_file() or not (path / "config.json").is_file():
        return CAUSAL_LM
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        return CAUSAL_LM
    timm = "pretrained_cfg" in config or isinstance(config.get("architecture"), str)
    return CLASSIFIER if timm or any(a.endswith(HEADS) for a in architectures(config)) else CAUSAL_LM


def input_of(source: str) -> str:
    """Return what a classifier takes, `image` or `text`; raises InputError for an unknown `new:ARCHITECTURE`.

    Nothing but the configuration is read.
    """
    if source.startswith(NEW):
        return _input_of_new(source.removeprefix(NEW))
    path = locate(source)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    return "text" if isinstance(config, dict) and takes_texts(config) else "image"


def takes_texts(config: dict[str, Any]) -> bool:
    """Say whether a configuration is that of a text classifier."""
    return any("ForSequenceClassification" in name for name in architectures(config))


def _input_of_new(architecture: str) -> str:
    from detrojan.models.text_zoo import TEXT_ZOO
    from detrojan.models.zoo import ZOO

    if architecture in TEXT_ZOO:
        return "text"
    if architecture in ZOO or architecture.startswith("timm/"):
        return "image"
    raise InputError(suggest(architecture, [*ZOO, *TEXT_ZOO, "timm/NAME"], "architecture"))


def architectures(config: dict[str, Any]) -> list[str]:
    """Return the names of the classes that a configuration names; [] where it names none."""
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []
