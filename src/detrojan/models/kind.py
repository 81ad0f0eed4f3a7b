"""Which side of the house a model belongs to: causal language models or classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detrojan.models.load import locate, read_json

CAUSAL_LM, CLASSIFIER = "causal-lm", "classifier"
HEADS = ("ForImageClassification", "ForSequenceClassification", "ForImageClassificationWithTeacher")


def task_of(source: Any, architecture: str | None = None) -> str:
    """Return `causal-lm` or `classifier` for a directory, hub name, file or object; raises InputError for none.

    Nothing but the configuration is read. What is neither is left to the language side, which says what is wrong.
    """
    if not isinstance(source, (str, Path)):
        return CAUSAL_LM if getattr(source, "can_generate", bool)() else CLASSIFIER
    if architecture or str(source).startswith("new:"):
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


def architectures(config: dict[str, Any]) -> list[str]:
    """Return the names of the classes that a configuration names; [] where it names none."""
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []
