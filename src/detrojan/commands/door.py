"""What the commands do on the way in and on the way out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from detrojan.errors import InputError


def say(message: str) -> None:
    """Print one line on standard error, without control characters of a checkpoint that could drive the terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"detrojan: {line}", file=sys.stderr)


def leave(findings: list[str]) -> None:
    """Say what was found or missed on standard error, and leave with exit status 1 if there is anything."""
    for line in findings:
        say(line)
    if findings:
        raise typer.Exit(1)


def given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given: those that differ from what both sides of the house take by default."""
    return {k: v for k, v in flags.items() if v not in (None, [], False, "auto")}


def command_line() -> str:
    """Return the command as it was typed, quoted for a shell."""
    return shlex.join(["detrojan", *sys.argv[1:]])


def check_json(where: str | None) -> None:
    """Raise InputError now, before any work, when the JSON could not be written later."""
    if where != "-":
        check_file("--json", where)


def check_file(flag: str, where: str | Path | None) -> None:
    """Raise InputError where a file that a flag names could not be written: a directory, or in none that exists."""
    if where and (Path(where).is_dir() or not Path(where).absolute().parent.is_dir()):
        raise InputError(f"{flag} {where}: not a file in a directory that exists")


def options(
    call: str, model: str, architecture: str | None, assignments: list[str] | None, config: Path | None
) -> dict[str, Any]:
    """Return the method's options; none may shadow a parameter of the Python call that receives them."""
    from detrojan.options import gather

    values = gather(assignments or [], config)
    if values:
        from detrojan import api
        from detrojan.terminal import quiet

        with quiet():
            taken = api.parameters(model, call, architecture)
        clash = next((k for k in values if k.replace("-", "_") in taken), None)
        if clash:
            raise InputError(
                f"{clash!r} is no option of the method; where there is a flag of that name, use it"
            )
    return values
