"""`detrojan bench`: attacks x defenses x seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrojan.commands.door import check_json, command_line, leave
from detrojan.commands.flags import Device, Json

EXAMPLE = "Example: detrojan bench small-text --out grid (then the same again, after an interruption)"


def bench(
    grid: Annotated[
        str,
        typer.Argument(
            metavar="GRID", help="a YAML file, or small-text, small-image, crow-paper, ulrl-paper"
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="results and planted models; what is there is not redone")
    ],
    jobs: Annotated[
        int, typer.Option(min=1, help="pieces of work at a time; each gets its GPU or its cores")
    ] = 1,
    device: Device = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31, help="count the grid's seeds from this one")
    ] = None,
    json: Json = None,
) -> None:
    """Measure attacks x defenses x seeds: resumes where it was, writes tables and a report."""
    from detrojan.terminal import emit, grid_view, quiet, show

    check_json(json)
    with quiet(), grid_view() as (progress, watch):
        from detrojan.bench.run import bench as run

        result = run(
            grid,
            out=out,
            first_seed=seed,
            jobs=jobs,
            device=device,
            progress=progress,
            watch=watch,
            command=command_line(),
        )
    if json:
        emit(result.to_json(), json)
    if json != "-":
        show((out / "results.md").read_text(encoding="utf-8"))
        show(f"report: {out / 'report.html'}")
    leave([f"{r['attack']}, seed {r['seed']}, {r['defense']}: {r['error']}" for r in result.failed])
