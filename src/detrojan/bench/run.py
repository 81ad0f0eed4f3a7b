"""Run a grid: one piece of work after the other or several at a time, each kept as soon as it is done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from detrojan.atomic import write_text
from detrojan.bench import tables, worker
from detrojan.bench.cells import Cell, cells, check, perform
from detrojan.bench.grid import Grid, read_grid
from detrojan.bench.tables import subject
from detrojan.errors import InputError, first_line
from detrojan.report.grid import MARK, grid_page
from detrojan.types import Progress, silent

Record = dict[str, Any]
"""`rows` and `seconds` of a piece of work, or its `error`."""
Watch = Callable[["State"], None]


@dataclass(frozen=True)
class State:
    """How far a run is."""

    grid: Grid
    cells: tuple[Cell, ...]
    records: dict[str, Record]
    running: frozenset[str]


@dataclass(frozen=True)
class BenchResult:
    """The rows of a grid in its order, the seconds of each piece of work, and where they were written."""

    grid: Grid
    rows: tuple[Record, ...]
    out: Path

    @property
    def failed(self) -> tuple[Record, ...]:
        """The rows that hold an error instead of figures."""
        return tuple(r for r in self.rows if "error" in r)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"grid": self.grid.name, "rows": list(self.rows), "out": str(self.out)}


def bench(
    source: str | Path,
    *,
    out: str | Path,
    first_seed: int | None = None,
    jobs: int = 1,
    device: str = "auto",
    progress: Progress = silent,
    watch: Watch | None = None,
    command: str = "detrojan.bench",
) -> BenchResult:
    """Measure a grid (a YAML file or a preset's name) and write `results.jsonl`, `.csv`, `.md` and `report.html`.

    Finished pieces of work are kept in `out` under their identity: a run that was stopped, or a grid that grew, does
    only what is missing. A piece that fails is recorded with its error and tried again next time; the rest goes on.
    Raises InputError for a wrong grid, before any work.
    """
    grid, where = read_grid(source, first_seed), Path(out)
    check(grid)
    work = tuple(cells(grid))
    with _owned(where):
        records = _kept(where, work)

        def write() -> tuple[list[Record], dict[str, Any]]:
            rows = collect(grid, work, records)
            shown = tables.summary(grid, rows, _seconds(work, records))
            if missing := len(work) - sum(c.key in records for c in work):
                shown["legend"] += f"\nUnfinished: {missing} of {len(work)} pieces of work are not done."
            about = {"grid": grid.name, "source": grid.source, "command": command, "summary": shown}
            write_text(where / MARK, json.dumps(about) + "\n")
            tables.write(where, grid, rows)
            return rows, shown

        def report(running: frozenset[str]) -> None:
            if watch:
                watch(State(grid, work, records, running))

        def keep(cell: Cell, record: Record) -> None:
            records[cell.key] = record
            write_text(where / "cells" / f"{cell.key}.json", json.dumps(record) + "\n")
            write()

        try:
            write()
            run = Run(grid, work, where, records, keep, report, device, progress)
            _one_by_one(run) if jobs == 1 else _side_by_side(run, jobs)
        except OSError as error:
            if not _disk_full(error):
                raise
            raise InputError(
                f"{where}: no space left on the disk; what is finished is kept, make room and run the same command"
            ) from None
        rows, shown = write()
        write_text(where / "report.html", grid_page(shown, command))
    return BenchResult(grid, tuple(rows), where)


def collect(grid: Grid, work: Sequence[Cell], records: dict[str, Record]) -> list[Record]:
    """Return the finished rows in the order of the grid, each with its model, attack, seed and defense."""
    rows: list[Record] = []
    for cell in work:
        record = records.get(cell.key)
        if record is None or cell.attack is None:
            continue
        name = cell.defense.label if cell.defense else "attacked"
        place = {"model": cell.model, "data": cell.data, "attack": cell.attack.label, "seed": cell.seed}
        if "error" in record:
            rows.append({**place, "defense": name, "error": record["error"]})
        for row in record.get("rows", ()):
            rows.append({**place, **row, "defense": name if cell.defense else row["defense"]})
    return rows


def _seconds(work: Sequence[Cell], records: dict[str, Record]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for cell in work:
        if cell.attack and "seconds" in (record := records.get(cell.key, {})):
            column = cell.defense.label if cell.defense else "attacked"
            found.setdefault((subject(cell.model, cell.data), column), []).append(record["seconds"])
    return found


@dataclass(frozen=True)
class Run:
    """A run under way: what is to be done, what is known, and where each record goes."""

    grid: Grid
    work: Sequence[Cell]
    out: Path
    records: dict[str, Record]
    keep: Callable[[Cell, Record], None]
    report: Callable[[frozenset[str]], None]
    device: str
    progress: Progress

    def need(self, cell: Cell) -> Record:
        """Return the record of what a piece of work needs."""
        return self.records.get(cell.needs, {})

    def finished(self, cell: Cell) -> bool:
        """Say whether a piece of work is done and did not fail."""
        return _finished(self.records.get(cell.key))


def _one_by_one(run: Run) -> None:
    for cell in run.work:
        if run.finished(cell):
            continue
        run.report(frozenset([cell.key]))
        done = _missing(run.need(cell)) or attempt(
            run.grid, cell, run.out, run.need(cell), run.device, run.progress
        )
        run.keep(cell, done)
    run.report(frozenset())


def _side_by_side(run: Run, jobs: int) -> None:
    """Run `jobs` processes; each takes the next piece of work whose need is met. One that dies costs one piece."""
    waiting = [c for c in run.work if not run.finished(c)]
    keys = {c.key for c in waiting}
    running: dict[Future[Record], Cell] = {}

    def settle(cell: Cell, record: Record) -> None:
        keys.discard(cell.key)
        run.keep(cell, record)

    others = set(active_children())
    pool = _pool(jobs, run.device)
    try:
        while waiting or running:
            ready = [c for c in waiting if c.needs not in keys]
            for cell in ready[: jobs - len(running)]:
                waiting.remove(cell)
                if lost := _missing(run.need(cell)):
                    settle(cell, lost)
                    continue
                running[pool.submit(worker.work, run.grid, cell, run.out, run.need(cell))] = cell
            run.report(frozenset(c.key for c in running.values()))
            if not running:
                continue
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = [running.pop(f) for f in list(running) if f in finished and _died(f)]
            for future in [f for f in finished if f in running]:
                settle(running.pop(future), future.result())
            if broken:  # which one it was is not known: each is tried once more, alone
                broken += running.values()
                running.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                for cell in broken:
                    settle(cell, _alone(run, cell))
                pool = _pool(jobs, run.device)
    except BaseException:  # interrupted, or a full disk: what is under way is not waited for
        for child in set(active_children()) - others:
            child.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    run.report(frozenset())


def attempt(
    grid: Grid, cell: Cell, out: Path, done: Record, device: str, progress: Progress = silent
) -> Record:
    """Do one piece of work; what goes wrong in it becomes its record, except a full disk."""
    started = time.monotonic()
    try:
        rows = perform(grid, cell, out, done, device, progress)
    except Exception as error:
        if _disk_full(error):
            raise OSError(errno.ENOSPC, "no space left", str(out)) from None
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        return {"error": kind + first_line(error)}
    return {"rows": rows, "seconds": round(time.monotonic() - started, 1)}


def _pool(jobs: int, device: str) -> ProcessPoolExecutor:
    context = get_context("spawn")
    tickets = context.SimpleQueue()
    for k in range(jobs):
        tickets.put(k)
    return ProcessPoolExecutor(jobs, context, worker.begin, (tickets, jobs, device))


def _alone(run: Run, cell: Cell) -> Record:
    with _pool(1, run.device) as pool:
        try:
            return pool.submit(worker.work, run.grid, cell, run.out, run.need(cell)).result()
        except BrokenProcessPool:
            return {"error": "its process died, for lack of memory perhaps"}


def _died(future: Future[Record]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _missing(need: Record) -> Record | None:
    """Return the record of a piece whose need has failed."""
    return {"error": f"not run, for what it needs failed: {need['error']}"} if "error" in need else None


def _finished(record: Record | None) -> bool:
    return record is not None and "error" not in record


def _kept(out: Path, work: Sequence[Cell]) -> dict[str, Record]:
    """Return the records of earlier runs, and clear away what a killed run left half done."""
    records: dict[str, Record] = {}
    for cell in work:
        with contextlib.suppress(OSError, ValueError):
            record = json.loads((out / "cells" / f"{cell.key}.json").read_text(encoding="utf-8"))
            if isinstance(record, dict) and ("error" in record or "rows" in record):
                records[cell.key] = record
    for left in [*out.glob("planted/.*.partial"), *out.glob("shared/.*.partial")]:
        shutil.rmtree(left, ignore_errors=True)
    for cell in reversed([c for c in work if c.defense is None]):
        files = out / ("planted" if cell.attack else "shared") / cell.key
        if not _finished(records.get(cell.key)):
            shutil.rmtree(files, ignore_errors=True)  # written, but its record was not
        elif not files.is_dir() and not all(
            _finished(records.get(c.key)) for c in work if c.needs == cell.key
        ):
            del records[cell.key]  # deleted, but still needed
    return records


@contextlib.contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Hold the directory for this process alone; make it where it is not there yet."""
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists already and holds no grid; choose another name")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--out {out}: another run is at work there") from None
        yield


def _disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return full or "No space left on device" in str(error)  # safetensors has an error of its own
