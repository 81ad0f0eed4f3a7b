"""Look at the files of a checkpoint without opening a single pickle or running a line of its code."""

from __future__ import annotations

import json
from pathlib import Path

from detrojan.models.load import locate

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".keras", ".msgpack"}
CODE = {".py", ".so", ".sh", ".exe", ".dll", ".pyc"}


def scan_files(source: str) -> tuple[str, ...]:
    """Return what is wrong with the files of a checkpoint, a line each: formats that can run code, code, links out."""
    root = locate(source)
    if root.is_file():
        return (_pickle(root.name),) if root.suffix.lower() in PICKLES else ()
    found = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink() and not _stays(path, root):
            found.append(f"{name}: a link that leads out of the directory")
        elif path.suffix.lower() in PICKLES:
            found.append(_pickle(name))
        elif path.suffix.lower() in CODE:
            found.append(f"{name}: code beside the weights; detrojan never runs it")
        elif path.suffix == ".json" and path.is_file() and _asks_for_code(path):
            found.append(f"{name}: asks for code of its own (auto_map), which runs under trust_remote_code")
    return tuple(found)


def _pickle(name: str) -> str:
    return f"{name}: a format that can run code when it is opened; convert it to safetensors"


def _stays(path: Path, root: Path) -> bool:
    """Say whether a link stays in its checkpoint; the hub's cache links into its own blobs beside it."""
    cache = root.resolve().parent.parent / "blobs"
    target = path.resolve()
    return target.is_relative_to(root.resolve()) or target.is_relative_to(cache)


def _asks_for_code(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "auto_map" in data
