"""Every output directory is written here: model, card, manifest and report, complete or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detrojan import manifest
from detrojan.atomic import check_output, new_directory, write_text
from detrojan.report.card import model_card
from detrojan.report.page import page
from detrojan.types import plain


def target(out: str | Path | None) -> Path | None:
    """Return where to write, if anywhere; raises InputError before any work when it could not be written later."""
    if out is None:
        return None
    check_output(Path(out))
    return Path(out)


def write(
    directory: Path,
    save: Callable[[Path], None],
    record: dict[str, Any],
    extra: dict[str, str] | None = None,
) -> None:
    """Write a complete output directory; `save` puts the model in. Only the first process writes."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    data = plain(record)
    with new_directory(directory) as work:
        save(work)
        for name, content in (extra or {}).items():
            write_text(work / name, content)
        write_text(work / "README.md", model_card(data))
        manifest.write(work, data)
        write_text(work / "report.html", page(manifest.read(work)))
