"""`detrojan report`: one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrojan.commands.door import check_file, check_json
from detrojan.commands.flags import Json
from detrojan.errors import InputError

EXAMPLE = "Example: detrojan report ./backdoored ./cleaned --out report.html"


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR",
            help="what clean, attack, demo or bench wrote, or a file of evaluate --json; several stand side by side",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.html", help="where the page goes; replaced where it is there")
    ] = Path("report.html"),
    json: Json = None,
) -> None:
    """Show what detrojan wrote as one self-contained HTML page."""
    from detrojan.atomic import write_text
    from detrojan.terminal import emit, printable, show
    from detrojan.written import report as made

    if out.suffix.lower() not in {".html", ".htm"}:
        raise InputError(f"--out {out}: must end in .html")
    check_file("--out", out)
    check_json(json)
    result = made(sources)
    write_text(out, result.html)
    if json:
        emit({"out": str(out), "parts": result.parts}, json)
    if json != "-":
        for part in result.parts:
            show(printable(f"{part['name']}: {part['verdict']}"))
        show(f"report: {out}")
