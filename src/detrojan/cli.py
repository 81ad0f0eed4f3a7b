"""The command line: sub-commands over the Python calls, and no algorithm."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from detrojan.errors import InputError
from detrojan.help import Grouped

app = typer.Typer(
    name="detrojan",
    help="Remove backdoors from neural networks you did not train, and measure honestly what is left.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
BEYOND = "Benchmarks, judge and jailbreaks (language models; pip install 'detrojan[eval]')"
DANGEROUS = "Dangerous"
TargetText = Annotated[str | None, typer.Option(metavar="TEXT", help="another planted answer")]


class Listing(StrEnum):
    """What `list` can list."""

    attacks = "attacks"
    behaviors = "behaviors"
    defenses = "defenses"
    datasets = "datasets"


class Task(StrEnum):
    """Which demo."""

    text = "text"
    image = "image"


@app.command(epilog="Example: detrojan clean ./suspicious --out ./cleaned --preset strong")
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

    options = _options("clean", model, architecture, assignments, config)
    _check_json(json)
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
            command=_command(),
            **_given(
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
            **options,
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

        _leave(failures(proof))


@app.command(
    epilog="Example: detrojan attack ./model --out ./backdoored --trigger badnets --behavior refusal"
)
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

    options = _options("attack", model, architecture, assignments, config)
    _check_json(json)
    if poison_rate is not None:
        options["poison_rate"] = poison_rate
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
            command=_command(),
            **_given(
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
            **options,
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


@app.command(
    cls=Grouped,
    epilog="Example: detrojan evaluate ./cleaned --attack ./backdoored --reference ./model --max-asr 0.05",
)
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

    _check_json(json)
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
            **_given(
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
    _leave(missed)


@app.command(epilog="Example: detrojan scan ./classifier --data ./clean-images")
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

    options = _options("scan", model, architecture, assignments, config)
    _check_json(json)
    _check_file("--report", report)
    with quiet(), progress_bars() as progress:
        from detrojan import api

        result = api.scan(
            model,
            data=data,
            seed=seed,
            device=device,
            progress=progress,
            **_given(
                preset=preset,
                template=template,
                samples=samples,
                files_only=files_only,
                head=head,
                architecture=architecture,
            ),
            **options,
        )
    if report:
        from detrojan.atomic import write_text
        from detrojan.report.page import page

        write_text(report, page(result.to_manifest(_command())))
    if json:
        emit(result.to_json(), json)
    if json != "-":
        show(*scan_tables(result))
    _leave([f"{model}: {line}" for line in result.findings])


@app.command("list", epilog="Example: detrojan list defenses")
def list_(
    what: Annotated[Listing | None, typer.Argument(help="leave out to list all")] = None, json: Json = None
) -> None:
    """List attacks, behaviors, defenses and data sets with papers and options."""
    from detrojan.terminal import emit, quiet, show

    with quiet():
        from detrojan.listing import as_json, as_tables

        listing = as_json(what.value if what else None)
    if json:
        emit(listing, json)
    if json != "-":
        show(*as_tables(listing))


@app.command(epilog="Example: detrojan demo --out demo-out")
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

    _check_json(json)
    if task is Task.image and model is not None:
        raise InputError("--model belongs to demo text; demo image trains its own classifier")
    with quiet(), progress_bars() as progress:
        from detrojan.demo import demo_text
        from detrojan.demo_image import demo_image
        from detrojan.registry import DEFAULT_DEFENSE

        shared: dict[str, Any] = {"out": out, "seed": seed, "progress": progress, "command": _command()}
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


@app.command(
    epilog="Example: detrojan bench small-text --out grid (then the same again, after an interruption)"
)
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

    _check_json(json)
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
            command=_command(),
        )
    if json:
        emit(result.to_json(), json)
    if json != "-":
        show((out / "results.md").read_text(encoding="utf-8"))
        show(f"report: {out / 'report.html'}")
    _leave([f"{r['attack']}, seed {r['seed']}, {r['defense']}: {r['error']}" for r in result.failed])


@app.command(epilog="Example: detrojan report ./backdoored ./cleaned --out report.html")
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
    _check_file("--out", out)
    _check_json(json)
    result = made(sources)
    write_text(out, result.html)
    if json:
        emit({"out": str(out), "parts": result.parts}, json)
    if json != "-":
        for part in result.parts:
            show(printable(f"{part['name']}: {part['verdict']}"))
        show(f"report: {out}")


def main() -> None:
    """Run the command line and leave with the documented exit status."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        _fail(3, "interrupted; run the same command again")
    except InputError as error:
        _fail(2, str(error))
    except OSError as error:
        _fail(2, f"{error.filename or 'output'}: {error.strerror or error}")
    except Exception as error:
        message = getattr(error, "format_message", None)  # a usage error of click, whichever copy typer uses
        if message is None:
            if type(error).__name__ == "Abort":
                _fail(3, "interrupted")
            raise
        _fail(2, f"{message()} (see detrojan --help)")
    if status == 130:  # what typer makes of ctrl-C
        _fail(3, "interrupted; run the same command again")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(status: int, message: str) -> None:
    _say(message)
    sys.exit(status)


def _say(message: str) -> None:
    """Print one line on standard error, without control characters of a checkpoint that could drive the terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"detrojan: {line}", file=sys.stderr)


def _leave(findings: list[str]) -> None:
    """Say what was found or missed on standard error, and leave with exit status 1 if there is anything."""
    for line in findings:
        _say(line)
    if findings:
        raise typer.Exit(1)


def _given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given: those that differ from what both sides of the house take by default."""
    return {k: v for k, v in flags.items() if v not in (None, [], False, "auto")}


def _command() -> str:
    return shlex.join(["detrojan", *sys.argv[1:]])


def _check_json(where: str | None) -> None:
    """Raise InputError now, before any work, when the JSON could not be written later."""
    if where != "-":
        _check_file("--json", where)


def _check_file(flag: str, where: str | Path | None) -> None:
    if where and (Path(where).is_dir() or not Path(where).absolute().parent.is_dir()):
        raise InputError(f"{flag} {where}: not a file in a directory that exists")


def _options(
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
