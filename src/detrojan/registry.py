"""The one registry: what detrojan can do, by kind and name, with paper, task and options."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from detrojan.errors import InputError
from detrojan.options import build, suggest

F = TypeVar("F", bound=Callable[..., Any])

KINDS = ("trigger", "behavior", "defense")
ROOMS = ("detrojan.attacks.text", "detrojan.attacks.image", "detrojan.defenses")
DEFAULT_DEFENSE = {"causal-lm": "recant", "classifier": "ulrl"}
"""The defense of each task where none is named."""


@dataclass(frozen=True)
class Entry:
    """One registered method or record."""

    kind: str
    name: str
    task: str
    description: str
    paper: str
    value: Any
    options: type | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def make_options(self, values: Mapping[str, Any], preset: str | None = None) -> Any:
        """Build the options record: the preset first, then the given values over it."""
        if self.options is None:
            raise InputError(f"{self.name} takes no options")
        if preset is not None and preset not in self.presets:
            raise InputError(suggest(preset, self.presets, f"preset of {self.name}:"))
        base = self.presets.get(preset, {}) if preset else {}
        return build(self.options, {**base, **values}, self.name)


_entries: dict[tuple[str, str, str], Entry] = {}
_discovered = False


def register(entry: Entry) -> None:
    """Add an entry; a name that is taken in its kind and task raises ValueError."""
    key = (entry.kind, entry.name, entry.task)
    if entry.kind not in KINDS:
        raise ValueError(f"unknown kind {entry.kind!r}")
    if key in _entries:
        raise ValueError(f"the {entry.kind} {entry.name!r} is already registered")
    _entries[key] = entry


def defense(
    name: str,
    *,
    task: str,
    options: type,
    paper: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[F], F]:
    """Register `f(loaded, clean, options, run) -> Loaded` as a defense; its docstring's first line describes it."""

    def wrap(f: F) -> F:
        description = (f.__doc__ or "").strip().partition("\n")[0]
        register(Entry("defense", name, task, description, paper, f, options, presets or {}))
        return f

    return wrap


def find(kind: str, name: str, task: str = "causal-lm") -> Entry:
    """Return the entry of that name for a task; raises InputError with a suggestion for an unknown one."""
    known = {e.name: e for e in entries(kind, task)}
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if key not in known:
        raise InputError(suggest(name, known, kind))
    return known[key]


def entries(kind: str, task: str | None = None) -> list[Entry]:
    """List the entries of one kind (and one task, where given), by name."""
    _discover()
    found = [e for e in _entries.values() if e.kind == kind and task in (None, e.task)]
    return sorted(found, key=lambda e: (e.name, e.task))


def _discover() -> None:
    """Import every method once: our own rooms, then packages that name the entry point `detrojan.plugins`."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for room in ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{room}.{module.name}")
    for plugin in entry_points(group="detrojan.plugins"):
        plugin.load()
