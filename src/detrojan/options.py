"""Options of a method: a frozen dataclass becomes flags, `--set KEY=VALUE`, YAML and keyword arguments."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from detrojan.errors import InputError

T = TypeVar("T")
SHOWN = 40
"""Known names that a complaint about an unknown one lists at most."""


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare a field of an options dataclass; bounds are inclusive."""
    meta = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=meta)


def suggest(name: str, known: Iterable[str], what: str) -> str:
    """Return the one-line complaint about an unknown name, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    hint = f"did you mean {near[0]!r}?" if near else f"known: {shown or 'none'}"
    return f"unknown {what} {name!r}; {hint}"


def build(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Build an options record from loose values (text from flags, or YAML and Python values).

    Raises InputError for an unknown key, a value of the wrong kind, or one out of its bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    converted: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise InputError(suggest(name, fields, f"option of {what}:"))
        converted[name] = _convert(f"{what}: {name}", hints[name], value)
        _check(f"{what}: {name}", fields[name].metadata, converted[name])
    return cls(**converted)


def parse_assignments(pairs: Iterable[str]) -> dict[str, str]:
    """Read `KEY=VALUE` texts as given to `--set`."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key.strip():
            raise InputError(f"--set {pair!r}: write KEY=VALUE, for instance --set alpha=5.5")
        values[key.strip()] = value.strip()
    return values


def gather(pairs: Iterable[str], file: Path | None = None) -> dict[str, Any]:
    """Return the options of a YAML file, where given, and over them those of `KEY=VALUE` texts."""
    values: Any = {}
    if file is not None:
        import yaml

        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"--config {file}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise InputError(f"--config {file}: expected KEY: VALUE lines")
    return {str(k): v for k, v in {**values, **parse_assignments(pairs)}.items()}


def describe(cls: type) -> list[dict[str, Any]]:
    """List the options of a record: name, type, default, help, bounds."""
    hints = typing.get_type_hints(cls)
    return [
        {"name": f.name, "type": _type_name(hints[f.name]), "default": f.default, **f.metadata}
        for f in dataclasses.fields(cls)
    ]


def _type_name(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint)) if not isinstance(hint, types.UnionType) else str(hint)


def _convert(where: str, hint: Any, value: Any) -> Any:
    """Turn a value into the type of its field; text is read as a flag would be."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    kind = next(k for k in kinds if k is not type(None))
    try:
        if kind is bool:
            return _to_bool(value)
        if kind is int:
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
            if abs(int(value)) >= 2**31:
                raise ValueError
            return int(value)
        if kind is float:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError
            return number
        if kind is str and isinstance(value, str):
            return value
        raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is not a valid {kind.__name__}") from None


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "yes", "1", "false", "no", "0"}:
        return value.lower() in {"true", "yes", "1"}
    raise ValueError


def _check(where: str, meta: Mapping[str, Any], value: Any) -> None:
    if value is None:
        return
    low, high, choices = meta.get("minimum"), meta.get("maximum"), meta.get("choices")
    if low is not None and value < low:
        raise InputError(f"{where}: {value} is below the minimum {low}")
    if high is not None and value > high:
        raise InputError(f"{where}: {value} is above the maximum {high}")
    if choices is not None and value not in choices:
        raise InputError(suggest(str(value), choices, f"value of {where}:"))
