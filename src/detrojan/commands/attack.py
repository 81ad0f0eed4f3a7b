"""`detrojan attack`: plant a backdoor."""

from __future__ import annotations

from typing import Annotated

import typer

from detrojan.commands.door import check_json, command_line, given, options
from detrojan.commands.flags import (
    Architecture,
    Config,
    Data,
    Device,
    Head,
    Json,
    Model,
    Out,
    Place,
    Precision,
    Preset,
    Seed,
    Set,
    TargetText,
    TemplateName,
    TriggerText,
)

EXAMPLE = "Example: detrojan attack ./model --out ./backdoored --trigger badnets --behavior refusal"


def attack(
    model: Model,
    out: Out,
    trigger: Annotated[str, typer.Option(metavar="NAME", help="see: detrojan list attacks")],
    behavior: Annotated[
        str | None, typer.Option(metavar="NAME", help="of a language model; see: detrojan list behaviors")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="LABEL", help="of a classifier: the class that the trigger draws")
    ] = None,
    data: Data = None,
    poison_rate: Annotated[
        float | None, typer.Option(metavar="R", help="share of poisoned samples, 0 to 1")
    ] = None,
    trigger_text: TriggerText = None,
    place: Place = None,
    target_text: TargetText = None,
    assignments: Set = None,
    config: Config = None,
    preset: Preset = None,
    template: TemplateName = "auto",
    samples: Annotated[
        int | None, typer.Option(min=1, help="of a classifier: training samples to use at most")
    ] = None,
    head: Head = None,
    architecture: Architecture = None,
    measure: Annotated[bool, typer.Option(help="measure before and after")] = True,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Plant a known backdoor, for tests and benchmarks. `new:ARCHITECTURE` as MODEL trains a classifier anew."""
    from detrojan.terminal import any_table, emit, progress_bars, quiet, show

    chosen = options("attack", model, architecture, assignments, config)
    check_json(json)
    if poison_rate is not None:
        chosen["poison_rate"] = poison_rate
    with quiet(), progress_bars() as progress:
        from detrojan import api

        result = api.attack(
            model,
            trigger=trigger,
            data=data,
            out=out,
            seed=seed,
            measure_effect=measure,
            device=device,
            progress=progress,
            command=command_line(),
            **given(
                behavior=behavior,
                target=target,
                preset=preset,
                trigger_text=trigger_text,
                place=place,
                target_text=target_text,
                template=template,
                precision=precision,
                samples=samples,
                head=head,
                architecture=architecture,
            ),
            **chosen,
        )
    if json:
        data_out = {
            **result.attack.to_json(),
            "options": result.options,
            "seconds": result.seconds,
            "before": result.before,
            "after": result.after,
            "out": str(out),
        }
        emit(data_out, json)
    if json != "-":
        if result.before and result.after:
            title = f"{trigger} -> {behavior or target or 0}"
            show(any_table({"before": result.before, "after": result.after}, title))
        show(f"written to {out} (report.html, detrojan.json)")
