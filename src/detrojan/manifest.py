"""`detrojan.json`: how a model directory was made, so that it can be checked and made again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from detrojan.atomic import write_text
from detrojan.errors import InputError
from detrojan.models.load import read_json
from detrojan.types import plain

NAME = "detrojan.json"
PACKAGES = ("detrojan", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """Return a short hash of what changes a result, for the name under which work is resumed."""
    text = json.dumps(plain(list(parts)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hashes(paths: Iterable[Path], root: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name (below `root`, where given)."""
    return {str(p.relative_to(root) if root else p.name): sha256(p) for p in sorted(paths) if p.is_file()}


def write(directory: Path, data: dict[str, Any]) -> None:
    """Write the manifest of a directory, with the SHA-256 of every file that is in it."""
    outputs = hashes((p for p in directory.rglob("*") if p.name not in {NAME, "report.html"}), directory)
    body = {**plain(data), "versions": versions(), "outputs": outputs}
    write_text(directory / NAME, json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def read(source: str | Path) -> dict[str, Any]:
    """Read a manifest from a directory or a file; InputError when there is none or it is not one."""
    path = Path(source)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{source}: no {NAME} there")
    data = read_json(path)
    if not isinstance(data, dict) or "command" not in data:
        raise InputError(f"{path}: not a manifest of detrojan")
    return data
