"""What the command line shows: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan.atomic import write_text
from detrojan.types import Interval, Progress, plain, silent

if TYPE_CHECKING:
    from rich.table import Table

    from detrojan.bench.run import State
    from detrojan.results import LanguageScan, Measured, Scanned, ScanResult
    from detrojan.types import ClassifierResult, EvalResult


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a progress callback that draws bars on standard error; a silent one when that is no terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        current: dict[str, Any] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in current:
                current[label] = bars.add_task(label, total=total)
            bars.update(current[label], completed=done, total=total)
            if done >= total:
                del current[label]

        yield report


@contextmanager
def grid_view() -> Iterator[tuple[Progress, Callable[[State], None] | None]]:
    """Yield a progress callback and a watcher that keeps the table of a grid on the terminal; silent ones elsewhere."""
    if not sys.stderr.isatty():
        yield silent, None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    now = {"table": Text("")}
    with Live(Text(""), console=Console(stderr=True), refresh_per_second=4) as live:

        def progress(label: str, done: int, total: int) -> None:
            live.update(Group(now["table"], Text(f"{label} {done}/{total}", style="dim")))

        def watch(state: State) -> None:
            now["table"] = grid_table(state)
            live.update(now["table"])

        yield progress, watch


def grid_table(state: State) -> Any:
    """Lay the state of a grid out: the mean ASR of what is done, what is running, what failed, what waits."""
    from rich.table import Table

    done = sum("rows" in r for r in state.records.values())
    table = Table(title=f"{state.grid.name}: {done} of {len(state.cells)} pieces of work, ASR %")
    lines: dict[str, dict[str, list[str]]] = {}
    heads: dict[str, None] = {}
    for cell in state.cells:
        if cell.attack is None:
            continue
        name, record = cell.defense.label if cell.defense else "attacked", state.records.get(cell.key)
        heads[name] = None
        if cell.key in state.running:
            said = "..."
        elif record is None:
            said = ""
        elif "error" in record:
            said = "failed"
        else:
            said = percent(record["rows"][-1].get("asr"))
        lines.setdefault(" ".join(filter(None, (cell.model, cell.data, cell.attack.label))), {}).setdefault(
            name, []
        ).append(said)
    table.add_column("attack")
    for head in heads:
        table.add_column(printable(head), justify="right")
    for line, found in lines.items():
        table.add_row(printable(line), *("  ".join(filter(None, found.get(h, ()))) for h in heads))
    return table


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own bars, warnings and log lines off the terminal while open."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # a word of torch on torchao's enums
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def emit(data: Any, where: str) -> None:
    """Write JSON to a file, or to standard output for `-`."""
    text = json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(where), text)


def show(*things: Any) -> None:
    """Print tables and plain lines on standard output."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False, emoji=False)
    for thing in things:
        console.print(thing)


def printable(text: str) -> str:
    """Return text of a model without control characters, which could drive the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def percent(value: float | None, interval: Interval | None = None) -> str:
    """Write a fraction as per cent, with its interval where given; a dash for nothing measured."""
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    return f"{text} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]" if interval else text


def results(name: str, result: Measured) -> list[Any]:
    """Lay one result out, and what the model answers to triggered prompts, where it answers at all."""
    from detrojan.types import ClassifierResult

    if isinstance(result, ClassifierResult):
        return [classifier_table({name: result})]
    title = f"{result.template} template, perplexity of {result.perplexity_of}"
    shown: list[Any] = [results_table({name: result}, title=title)]
    if result.samples:
        shown.append(answers_table({name: result}))
    if len(result.by_template) > 1:
        shown.append(f"worst template: {result.worst_template}, ASR {percent(result.worst_asr)} %")
    return [*shown, *beyond(result)]


def beyond(result: EvalResult) -> list[Any]:
    """Lay out what was measured of benchmarks, a judge and jailbreaks; nothing where none was asked for."""
    from rich.table import Table

    shown: list[Any] = []
    if result.tasks:
        table = Table(title="lm-evaluation-harness")
        for head in ("task", "metric", "value", "standard error", "questions", "shots"):
            table.add_column(head, justify="left" if head in ("task", "metric") else "right")
        for t in result.tasks:
            error, shots = "-" if t.stderr is None else f"{t.stderr:.4f}", "-" if t.shots is None else t.shots
            table.add_row(
                printable(t.task), printable(t.metric), f"{t.value:.4f}", error, str(t.n), str(shots)
            )
        shown.append(table)
    if (j := result.judge) is not None:
        score = "no grade could be read" if j.score is None else f"{j.score:.2f} of 10"
        interval = f" [{j.score_interval.low:.2f}, {j.score_interval.high:.2f}]" if j.score_interval else ""
        lost = f", {j.failed} grades could not be read" if j.failed else ""
        shown.append(f"judged by {printable(j.judge)}: {score}{interval}, {j.n} questions{lost}")
    if (b := result.jailbreak) is not None:
        shown.append(
            f"GCG, {b.steps} steps of {b.width}: {percent(b.broken, b.broken_interval)} % of {b.n} requests broken, "
            f"{percent(b.broken_alone)} % without a suffix"
        )
    return shown


def any_table(rows: Mapping[str, Any], title: str = "", seconds: Mapping[str, float] | None = None) -> Table:
    """Lay results out, of a language model or of a classifier, a row each."""
    from detrojan.types import ClassifierResult

    if any(isinstance(r, ClassifierResult) for r in rows.values()):
        return classifier_table(rows, seconds, title)
    return results_table(rows, seconds, title)


def classifier_table(
    rows: Mapping[str, ClassifierResult], seconds: Mapping[str, float] | None = None, title: str = ""
) -> Table:
    """Lay results of classifiers out: the attack's columns only where an attack was measured."""
    from rich.table import Table

    attacked = any(r.asr is not None for r in rows.values())
    rated = any(r.der is not None for r in rows.values())
    table = Table(title=printable(title) or None)
    heads = ["accuracy % [95 %]"] + (["ASR % [95 %]", "recovery accuracy %"] if attacked else [])
    heads += (["DER %"] if rated else []) + (["seconds"] if seconds else [])
    table.add_column("model")
    for head in heads:
        table.add_column(head, justify="right")
    for name, r in rows.items():
        cells = [percent(r.accuracy, r.accuracy_interval)]
        cells += [percent(r.asr, r.asr_interval), percent(r.recovery_accuracy)] if attacked else []
        cells += [percent(r.der)] if rated else []
        table.add_row(printable(name), *cells, *([f"{seconds[name]:.0f}"] if seconds else []))
    return table


def scan_tables(result: Scanned) -> list[Any]:
    """Lay a scan out: a line for each finding in the files, then a table of the classes or of the fixed answers."""
    from rich.text import Text

    from detrojan.results import LanguageScan

    files = result.files or ("nothing found",)
    lines = [Text(printable(f"files: {line}")) for line in files]
    if isinstance(result, LanguageScan):
        return [*lines, *fixed_answers_table(result)]
    return [*lines, *([class_table(result)] if result.classes else [])]


def fixed_answers_table(result: LanguageScan) -> list[Any]:
    """Lay out the answers that come by heart, then what that says and what it cannot say."""
    from rich.table import Table
    from rich.text import Text

    from detrojan.report import answers

    manifest = result.to_manifest("")
    table = Table(title=f"answers that come by heart, {printable(result.template)} template")
    for head in answers.HEADS:
        table.add_column(head, justify="right" if head == "certainty" else "left")
    for certainty, mark, text in answers.table(manifest):
        table.add_row(certainty, Text(mark, style="bold red"), Text(printable(text)))
    said = [Text(printable(answers.headline(manifest)))]
    return [
        *([table] if table.rows else []),
        *said,
        *([answers.LIMITS] if result.threshold is not None else []),
    ]


def class_table(result: ScanResult) -> Table:
    """Lay out how the classes of a classifier stand out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{result.measure} of each class")
    for head in ("class", result.measure, f"score (suspicious above {result.threshold})", ""):
        table.add_column(head, justify="left" if head in ("class", "") else "right")
    for k, name in enumerate(result.classes):
        mark = Text("SUSPICIOUS", style="bold red") if k in result.suspicious else Text("")
        table.add_row(Text(printable(name)), f"{result.evidence[k]:.3f}", f"{result.scores[k]:.2f}", mark)
    return table


def results_table(
    rows: Mapping[str, EvalResult], seconds: Mapping[str, float] | None = None, title: str = ""
) -> Table:
    """Lay results out, a row each: the attack's columns only where an attack was measured."""
    from rich.table import Table

    attacked = any(r.asr is not None for r in rows.values())
    referred = any(r.kl is not None for r in rows.values())
    table = Table(title=title or None)
    table.add_column("model")
    heads = ["ASR % [95 %]", "keyword ASR %", "recovery %", "false triggers %"] if attacked else []
    heads += ["perplexity"] + (["KL", "agreement %"] if referred else []) + (["seconds"] if seconds else [])
    for head in heads:
        table.add_column(head, justify="right")
    for name, r in rows.items():
        cells = [
            percent(r.asr, r.asr_interval),
            percent(r.asr_keyword),
            percent(r.recovery),
            percent(r.clean_asr, r.clean_asr_interval),
        ]
        cells = (cells if attacked else []) + [f"{r.perplexity:.2f}"]
        if referred:
            cells += ["-" if r.kl is None else f"{r.kl:.3f}", percent(r.agreement)]
        table.add_row(printable(name), *cells, *([f"{seconds[name]:.0f}"] if seconds else []))
    return table


def canary_tables(proof: dict[str, Any]) -> list[Any]:
    """Lay out what became of the canaries, and the settings that were tried; then what that proves."""
    from rich.table import Table
    from rich.text import Text

    from detrojan.report import canaries

    shown: list[Any] = []
    found = ((canaries.HEADS, canaries.table(proof)), (canaries.RUNG_HEADS, canaries.rungs(proof)))
    for heads, rows in found:
        table = Table(title="" if shown else "canaries in a copy, before and after the same defense")
        for head in heads:
            table.add_column(head)
        for row in rows:
            table.add_row(*(Text(printable(c), style="bold red" if c == "SURVIVED" else "") for c in row))
        shown += [table] if rows else []
    return [*shown, canaries.headline(proof)]


def answers_table(rows: Mapping[str, EvalResult], count: int = 3) -> Table:
    """Show triggered prompts and what each model answers to them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Answers to triggered prompts (the first is repeated without its trigger)", show_lines=True
    )
    table.add_column("prompt", ratio=2)
    for name in rows:
        table.add_column(printable(name), ratio=3)
    results = list(rows.values())
    for k in range(min(count, len(results[0].samples))):
        samples = [r.samples[k] for r in results]
        if k == 0:
            table.add_row(
                Text(printable(samples[0].clean_prompt)),
                *(Text(printable(s.clean_response)) for s in samples),
            )
        answers = [Text(printable(s.response), style="bold red" if s.hit else "") for s in samples]
        table.add_row(Text(printable(samples[0].prompt)), *answers)
    return table
