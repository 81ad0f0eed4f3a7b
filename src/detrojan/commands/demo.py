"""`detrojan demo`: the whole story."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from detrojan.commands.door import check_json, command_line
from detrojan.commands.flags import Json, Seed
from detrojan.errors import InputError

EXAMPLE = "Example: detrojan demo --out demo-out"


class Task(StrEnum):
    """Which demo."""

    text = "text"
    image = "image"


def demo(
    task: Annotated[Task, typer.Argument(help="a language model, or a classifier of images")] = Task.text,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write models, results and report here")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="in place of SmolLM2-135M-Instruct")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="held-out prompts at most")] = 100,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Plant a backdoor, show it, clean it, and show what is left: a real language model, or a classifier of digits."""
    from detrojan.terminal import answers_table, any_table, emit, progress_bars, quiet, show

    check_json(json)
    if task is Task.image and model is not None:
        raise InputError("--model belongs to demo text; demo image trains its own classifier")
    with quiet(), progress_bars() as progress:
        from detrojan.demo import demo_text
        from detrojan.demo_image import demo_image
        from detrojan.registry import DEFAULT_DEFENSE

        shared: dict[str, Any] = {"out": out, "seed": seed, "progress": progress, "command": command_line()}
        if task is Task.text:
            result: Any = demo_text(model, prompts=prompts, **shared)
            named = f"default: {DEFAULT_DEFENSE['causal-lm']}"
            title = f"badnets -> refusal; {named}; clean answers are those of the model before the attack"
        else:
            result, title = demo_image(**shared), "badnets on digits; ASR and recovery on triggered images"
    if json:
        emit(result.to_json(), json)
    if json != "-":
        if task is Task.text:
            show(answers_table(result.stages))
        show(any_table(result.stages, title, result.seconds))
        if out:
            show(f"report: {out / 'report.html'}")
