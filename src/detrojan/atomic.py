"""Directories and files that are complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detrojan.errors import InputError


def check_output(directory: Path, *, what: str = "--out") -> None:
    """Raise InputError now, before any work, when an output directory could not be created later."""
    if directory.exists():
        raise InputError(f"{what} {directory}: exists already; choose another name or remove it")
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{what} {directory}: {parent} is not a directory that can be written to")


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Yield a directory to fill; it gets its name in one step at the end, or vanishes on an error.

    It is filled beside its final place, on the same disk; a killed process leaves only a hidden
    `.NAME.*.partial` behind.
    """
    check_output(directory)
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = Path(
        tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.absolute().parent)
    )
    try:
        yield work
        mask = os.umask(0)
        os.umask(mask)
        for path in sorted(work.rglob("*")):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)  # safetensors writes for the owner alone
            _sync(path)
        work.chmod(0o777 & ~mask)
        work.rename(directory.absolute())
        _sync(directory.absolute().parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, flush it to the disk, and rename it into place."""
    part = path.with_name(f".{path.name}.partial")
    part.write_text(text, encoding="utf-8")
    _sync(part)
    part.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
