"""What detrojan wrote, read again and shown as a page: one directory's page, or several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from detrojan import manifest
from detrojan.errors import InputError
from detrojan.models.load import read_json
from detrojan.report import card
from detrojan.report.compare import Named, compare
from detrojan.report.grid import MARK, grid_page, joined, verdicts
from detrojan.report.page import page, told
from detrojan.report.words import Part, classifies, stages

EXPECTED = "give what clean, attack, demo, bench or evaluate --json wrote"
KINDS = ("clean", "attack", "demo", "evaluate")
MISSHAPEN = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    TemplateError,
)
"""What goes wrong with JSON that another program wrote, or a person."""
SHOWN = ("asr", "worst_asr", "asr_keyword", "recovery", "clean_asr", "empty", "agreement", "kl", "perplexity")
SHOWN_OF_CLASSIFIERS = ("accuracy", "asr", "recovery_accuracy", "der")
ALSO = ("seconds", "n_triggered", "n_clean")


@dataclass(frozen=True)
class Report:
    """A page, and what it says: for each victim or each model of a grid its name, verdict, notes and figures."""

    html: str
    parts: list[dict[str, Any]]


def report(sources: Sequence[str | Path]) -> Report:
    """Make one page from directories of `clean`, `attack`, `demo` or `bench`, or files of `evaluate --json`.

    One source gives its page again. Raises InputError for what detrojan did not write, for grids beside models, and
    for language models beside classifiers.
    """
    names = [str(s) for s in sources]
    places = [Path(n).resolve() for n in names]
    if twice := next((n for n, p in zip(names, places, strict=True) if places.count(p) > 1), None):
        raise InputError(f"{twice}: given twice; leave one out")
    grids = [n for n in names if (Path(n) / MARK).is_file()]
    if grids and len(grids) < len(names):
        other = next(n for n in names if n not in grids)
        raise InputError(f"{other}: no grid, as {grids[0]} is; give grids a page of their own")
    return _of_grids(names) if grids else _of_models([(n, read(n)) for n in names])


def read(name: str) -> dict[str, Any]:
    """Read the manifest of a directory; the JSON of `evaluate` becomes one."""
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name}: no such directory; {EXPECTED}")
    if path.is_dir() and not (path / manifest.NAME).is_file():
        raise InputError(f"{name}: holds neither {manifest.NAME} nor {MARK}; {EXPECTED}")
    data = _json(path / manifest.NAME if path.is_dir() else path)
    with blamed(name):
        if "command" not in data and {"model", "n_clean"} <= data.keys():
            task = {"task": "image"} if "accuracy" in data else {}
            data = {"kind": "evaluate", **task, "model": data["model"], "stages": {"measured": data}}
        if data.get("kind") not in KINDS:
            raise InputError(f"{name}: nothing to report; {EXPECTED}")
        told(Part(name, data))
        card.voice(data).measures(stages(data))
    return data


def _of_models(given: Sequence[Named]) -> Report:
    kinds = {classifies(m): name for name, m in given}
    if len(kinds) > 1:
        raise InputError(f"{kinds[True]}: a classifier, {kinds[False]}: a language model; give each a page")
    with blamed(", ".join(name for name, _ in given)):
        if len(given) == 1:
            [(name, data)] = given
            return Report(page(data), [_summary(Part(name, data))])
        merged, parts = compare(given)
        return Report(page(merged, parts), [_summary(p) for p in parts])


def _summary(part: Part) -> dict[str, Any]:
    said = told(part)
    keys = (*(SHOWN_OF_CLASSIFIERS if classifies(part.manifest) else SHOWN), *ALSO)
    intervals = [f"{key.removesuffix('_accuracy')}_interval" for key in keys]
    figures = [
        {"stage": s.label, **{k: s.result[k] for k in (*keys, *intervals) if s.result.get(k) is not None}}
        for s in stages(part.manifest)
    ]
    return {"name": part.name, "verdict": said["headline"], "notes": said["notes"], "stages": figures}


def _of_grids(names: Sequence[str]) -> Report:
    given = []
    for name in names:
        data = _json(Path(name) / MARK)
        if not isinstance(data, dict) or "summary" not in data:
            raise InputError(f"{name}: {MARK} holds no results; run the same detrojan bench again")
        with blamed(name):
            verdicts(data["summary"])
        given.append((name, data))
    with blamed(", ".join(names)):
        summary = joined([(name, d["summary"]) for name, d in given])
        command = "\n".join(str(d.get("command")) for _, d in given)
        return Report(grid_page(summary, command), verdicts(summary))


def _json(path: Path) -> Any:
    with blamed(str(path)):
        return read_json(path)


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """Turn what goes wrong with JSON of another form into one line that names the source."""
    try:
        yield
    except InputError:
        raise
    except MISSHAPEN:
        raise InputError(f"{name}: not as detrojan writes it; {EXPECTED}") from None
