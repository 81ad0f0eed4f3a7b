"""`detrojan scan`: look at a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrojan.commands.door import check_file, check_json, command_line, given, leave, options
from detrojan.commands.flags import (
    Architecture,
    Config,
    Data,
    Device,
    Head,
    Json,
    Model,
    Preset,
    Seed,
    Set,
    TemplateName,
)

EXAMPLE = "Example: detrojan scan ./classifier --data ./clean-images"


def scan(
    model: Model,
    data: Data = None,
    assignments: Set = None,
    config: Config = None,
    preset: Preset = None,
    template: TemplateName = "auto",
    samples: Annotated[
        int | None, typer.Option(min=1, help="clean samples to use at most (100 prompts, 600 images)")
    ] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="do not load the model: look at its files alone")
    ] = False,
    head: Head = None,
    architecture: Architecture = None,
    device: Device = "auto",
    seed: Seed = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write a self-contained HTML page here")
    ] = None,
    json: Json = None,
) -> None:
    """Look at an untrusted checkpoint: its files, then its behaviour.

    Of a language model, the answers that it says by heart, whatever it is asked; of a classifier, with clean
    samples, the class that a backdoor may draw. What is found are hints, not proof.
    """
    from detrojan.terminal import emit, progress_bars, quiet, scan_tables, show

    chosen = options("scan", model, architecture, assignments, config)
    check_json(json)
    check_file("--report", report)
    with quiet(), progress_bars() as progress:
        from detrojan import api

        result = api.scan(
            model,
            data=data,
            seed=seed,
            device=device,
            progress=progress,
            **given(
                preset=preset,
                template=template,
                samples=samples,
                files_only=files_only,
                head=head,
                architecture=architecture,
            ),
            **chosen,
        )
    if report:
        from detrojan.atomic import write_text
        from detrojan.report.page import page

        write_text(report, page(result.to_manifest(command_line())))
    if json:
        emit(result.to_json(), json)
    if json != "-":
        show(*scan_tables(result))
    leave([f"{model}: {line}" for line in result.findings])
