"""`detrojan clean`: remove a backdoor."""

from __future__ import annotations

from typing import Annotated

import typer

from detrojan.commands.door import check_json, command_line, given, leave, options
from detrojan.commands.flags import (
    Architecture,
    Config,
    Data,
    Device,
    Head,
    Json,
    Model,
    Out,
    Precision,
    Preset,
    Seed,
    Set,
    TemplateName,
)

EXAMPLE = "Example: detrojan clean ./suspicious --out ./cleaned --preset strong"


def clean(
    model: Model,
    out: Out,
    defense: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="recant for a language model, ulrl for a classifier; others: detrojan list defenses",
        ),
    ] = None,
    data: Data = None,
    assignments: Set = None,
    config: Config = None,
    preset: Preset = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="clean samples to use at most (100 prompts, 600 images)")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(metavar="DIR", help="measure against this known attack, after cleaning")
    ] = None,
    template: TemplateName = "auto",
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="save the LoRA, do not merge it")
    ] = False,
    head: Head = None,
    architecture: Architecture = None,
    measure: Annotated[bool, typer.Option(help="measure before and after")] = True,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="try the defense on backdoors of our own in a copy first, from its weakest preset up; "
            "exit status 1 if one survives (language models)",
        ),
    ] = False,
    max_cost: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, help="with --prove: by how much perplexity may rise (0.05)"),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Remove a backdoor without knowing its trigger."""
    from detrojan.report.answers import dealt_with
    from detrojan.terminal import any_table, canary_tables, emit, progress_bars, quiet, show

    chosen = options("clean", model, architecture, assignments, config)
    check_json(json)
    with quiet(), progress_bars() as progress:
        from detrojan import api

        result = api.clean(
            model,
            defense=defense,
            data=data,
            out=out,
            seed=seed,
            preset=preset,
            measure_effect=measure,
            device=device,
            progress=progress,
            command=command_line(),
            **given(
                template=template,
                samples=samples,
                attack=attack,
                keep_adapter=keep_adapter,
                prove=prove,
                precision=precision,
                head=head,
                architecture=architecture,
            ),
            **({} if max_cost is None else {"max_cost": max_cost}),
            **chosen,
        )
    proof = result.proof.to_json() if result.proof else None
    data_out = {
        "defense": result.defense,
        "options": result.options,
        "samples": result.samples,
        "seconds": result.seconds,
        "template": result.template,
        "perplexity_ratio": result.perplexity_ratio,
        "notes": result.notes,
        "before": result.before,
        "after": result.after,
        "proof": proof,
        "out": str(out),
    }
    if json:
        emit(data_out, json)
    if json != "-":
        if result.before and result.after:
            show(any_table({"before": result.before, "after": result.after}, f"{result.defense}: {model}"))
        if done := dealt_with({"notes": result.notes}):
            show(done)
        if proof:
            show(*canary_tables(proof))
        show(f"written to {out} (report.html, detrojan.json)")
    if proof:
        from detrojan.report.canaries import failures

        leave(failures(proof))
