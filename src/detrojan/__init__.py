"""detrojan: remove backdoors from neural networks you did not train, and measure what is left.

The public names are loaded when they are first used, so that `import detrojan` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detrojan.errors import InputError

if TYPE_CHECKING:
    from detrojan.api import AttackResult, CleanResult, attack, clean, evaluate
    from detrojan.models.load import load
    from detrojan.models.save import save
    from detrojan.types import EvalResult, Example

_HOMES = {
    "AttackResult": "detrojan.api",
    "CleanResult": "detrojan.api",
    "EvalResult": "detrojan.types",
    "Example": "detrojan.types",
    "attack": "detrojan.api",
    "clean": "detrojan.api",
    "evaluate": "detrojan.api",
    "load": "detrojan.models.load",
    "save": "detrojan.models.save",
}

__all__ = [
    "AttackResult",
    "CleanResult",
    "EvalResult",
    "Example",
    "InputError",
    "attack",
    "clean",
    "evaluate",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'detrojan' has no attribute {name!r}")
