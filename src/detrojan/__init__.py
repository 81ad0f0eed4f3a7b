"""detrojan: remove backdoors from neural networks you did not train, and measure what is left.

The public names are loaded when they are first used, so that `import detrojan` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detrojan.errors import InputError

if TYPE_CHECKING:
    from detrojan.api import attack, clean, evaluate, scan
    from detrojan.models.classifier import load_classifier
    from detrojan.models.load import load
    from detrojan.models.save import save
    from detrojan.results import AttackResult, CleanResult, LanguageScan, ScanResult
    from detrojan.types import ClassifierResult, EvalResult, Example

_HOMES = {
    "AttackResult": "detrojan.results",
    "ClassifierResult": "detrojan.types",
    "CleanResult": "detrojan.results",
    "EvalResult": "detrojan.types",
    "Example": "detrojan.types",
    "LanguageScan": "detrojan.results",
    "ScanResult": "detrojan.results",
    "attack": "detrojan.api",
    "clean": "detrojan.api",
    "evaluate": "detrojan.api",
    "load": "detrojan.models.load",
    "load_classifier": "detrojan.models.classifier",
    "scan": "detrojan.api",
    "save": "detrojan.models.save",
}

__all__ = [
    "AttackResult",
    "ClassifierResult",
    "CleanResult",
    "EvalResult",
    "Example",
    "InputError",
    "LanguageScan",
    "ScanResult",
    "attack",
    "clean",
    "evaluate",
    "load",
    "load_classifier",
    "save",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'detrojan' has no attribute {name!r}")
