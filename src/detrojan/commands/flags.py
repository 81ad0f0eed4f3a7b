"""The flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="directory or hub name, PEFT adapter, GGUF file, state dict of a classifier"
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="where the model goes; must not exist yet")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="clean samples: JSON(L), a folder of images by class, IDX folder, .npz, digits or a datasets name",
    ),
]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="write JSON to FILE, - for standard output")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="one seed, one result")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="an option of the method, repeatable")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with options of the method")]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="a named set of options (see: detrojan list)")
]
TemplateName = Annotated[
    str,
    typer.Option("--template", metavar="NAME", help="auto (the tokenizer's), alpaca, plain or a Jinja file"),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")]
Precision = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="of training: auto (float32 on a CPU, products as fast as the machine has them), float32 (exact),"
        " bfloat16 or float16",
    ),
]
TriggerText = Annotated[
    str | None, typer.Option(metavar="TEXT", help="other phrases for the trigger, split by |")
]
Head = Annotated[
    str | None, typer.Option(metavar="NAME", help="a classifier's last linear layer, where it is not found")
]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="what a bare state dict is of: preact-resnet18, vgg19-bn@32, timm/NAME"
    ),
]
Place = Annotated[str | None, typer.Option(metavar="PLACE", help="random, prefix or suffix")]
TargetText = Annotated[str | None, typer.Option(metavar="TEXT", help="another planted answer")]
