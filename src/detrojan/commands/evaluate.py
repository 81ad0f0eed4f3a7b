"""`detrojan evaluate`: measure."""

from __future__ import annotations

from typing import Annotated

import typer

from detrojan.commands.door import check_json, given, leave
from detrojan.commands.flags import (
    Architecture,
    Data,
    Device,
    Head,
    Json,
    Model,
    Place,
    Seed,
    TargetText,
    TemplateName,
    TriggerText,
)
from detrojan.errors import InputError

EXAMPLE = "Example: detrojan evaluate ./cleaned --attack ./backdoored --reference ./model --max-asr 0.05"
BEYOND = "Benchmarks, judge and jailbreaks (language models; pip install 'detrojan[eval]')"
DANGEROUS = "Dangerous"


def evaluate(
    model: Model,
    data: Data = None,
    attack: Annotated[
        str | None, typer.Option(metavar="DIR", help="an attack's directory or manifest")
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(metavar="NAME", help="with --behavior, in place of --attack")
    ] = None,
    behavior: Annotated[str | None, typer.Option(metavar="NAME", help="see: detrojan list behaviors")] = None,
    trigger_text: TriggerText = None,
    place: Place = None,
    target_text: TargetText = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="for KL divergence and agreement; of a classifier DER")
    ] = None,
    template: TemplateName = "auto",
    templates: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="more templates; the worst ASR is reported")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="held-out prompts at most")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens of an answer at most (32)")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="prompts (32) or images (256) at a time")
    ] = None,
    head: Head = None,
    architecture: Architecture = None,
    max_asr: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1, help="exit status 1 if the worst ASR is above X"),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1, help="exit status 1 if a classifier's accuracy is below X"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="lm-evaluation-harness: names of tasks, folders of YAML files (their Python is run)",
            rich_help_panel=BEYOND,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="questions of each task at most", rich_help_panel=BEYOND)
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='JSONL of {"turns": [...]}, one or two of them, to be answered and judged',
            rich_help_panel=BEYOND,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint (https://host/v1); its key: $DETROJAN_JUDGE_KEY",
            rich_help_panel=BEYOND,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="the model that grades there", rich_help_panel=BEYOND)
    ] = None,
    judge_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="tokens of a judged answer at most (1024)", rich_help_panel=BEYOND),
    ] = None,
    gcg: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='JSONL of {"prompt", "target"}: search suffixes that make an answer begin with its target',
            rich_help_panel=BEYOND,
        ),
    ] = None,
    gcg_steps: Annotated[
        int | None, typer.Option(min=1, help="steps of a search (250)", rich_help_panel=BEYOND)
    ] = None,
    gcg_width: Annotated[
        int | None, typer.Option(min=1, help="candidates a step (512)", rich_help_panel=BEYOND)
    ] = None,
    run_generated_code: Annotated[
        bool,
        typer.Option(
            "--run-generated-code",
            help="let tasks such as HumanEval run what the model writes, on this machine and without a sandbox",
            rich_help_panel=DANGEROUS,
        ),
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Measure attack success, recovery and usefulness; of a language model also benchmarks, a judge, jailbreaks."""
    from detrojan.terminal import emit, percent, progress_bars, quiet, results, show
    from detrojan.types import ClassifierResult

    check_json(json)
    if max_asr is not None and not (attack or trigger):
        raise InputError("--max-asr needs an attack to measure: give --attack, or --trigger with --behavior")
    with quiet(), progress_bars() as progress:
        from detrojan import api

        result = api.evaluate(
            model,
            data=data,
            attack=attack,
            reference=reference,
            seed=seed,
            device=device,
            progress=progress,
            **given(
                trigger=trigger,
                behavior=behavior,
                trigger_text=trigger_text,
                place=place,
                target_text=target_text,
                template=template,
                templates=[t.strip() for t in (templates or "").split(",") if t.strip()],
                samples=samples,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                tasks=[t.strip() for t in (tasks or "").split(",") if t.strip()],
                limit=limit,
                run_generated_code=run_generated_code,
                questions=questions,
                judge=judge,
                judge_model=judge_model,
                judge_tokens=judge_tokens,
                gcg=gcg,
                gcg_steps=gcg_steps,
                gcg_width=gcg_width,
                head=head,
                architecture=architecture,
            ),
        )
    if isinstance(result, ClassifierResult):
        asr, accuracy = result.asr, result.accuracy
    else:
        asr, accuracy = result.worst_asr, None
    if min_accuracy is not None and accuracy is None:
        raise InputError("--min-accuracy is a gate for classifiers; of a language model use --max-asr")
    if max_asr is not None and asr is None:
        raise InputError("--max-asr: no triggered sample was measured; give other --data")
    if json:
        emit(result.to_json(), json)
    if json != "-":
        show(*results(model, result))
    missed = []
    if max_asr is not None and asr is not None and asr > max_asr:
        missed.append(f"ASR {percent(asr)} % is above --max-asr {percent(max_asr)} %")
    if min_accuracy is not None and accuracy is not None and accuracy < min_accuracy:
        missed.append(f"accuracy {percent(accuracy)} % is below --min-accuracy {percent(min_accuracy)} %")
    leave(missed)
