"""A grid as one self-contained HTML page: what its defenses leave of the backdoors, and what that costs."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import Any

from detrojan.errors import InputError
from detrojan.report.grid_plots import heat_map, scatter
from detrojan.report.grid_verdict import attacks, verdict
from detrojan.report.page import environment
from detrojan.report.standings import UNDER, Subject, drawn, read, useful
from detrojan.report.words import DASH, known, percent

MARK = "grid.json"
"""In a grid's directory: the command, and the summary that its page is made from."""
KINDS = {"causal-lm": "language models", "classifier": "classifiers"}
NOTE = "The rates are those of the attacks measured here: what other triggers would do is not known."


def grid_page(summary: dict[str, Any], command: str) -> str:
    """Render the summary of a grid (see `bench.tables.summary`) as one HTML page.

    The same summary gives the same page, byte for byte.
    """
    subjects = [read(s) for s in summary["subjects"]]
    tolerance = summary["tolerance"]
    shown = [
        {
            "name": s.name,
            "said": verdict(s, tolerance),
            "map": heat_map(s),
            "scatter": scatter(s, tolerance),
            "starred": any(c["failed"] and known(c["mean"]) for r in s.rates.values() for c in r.values()),
            "undrawn": [d.name for d in s.defenses if d not in drawn(s)],
            "overview": overview(s),
            "columns": s.columns,
            "measures": given["measures"],
        }
        for s, given in zip(subjects, summary["subjects"], strict=True)
    ]
    template = environment().get_template("grid.html.j2")
    return template.render(
        grid=summary["grid"],
        kind=KINDS.get(summary["task"], summary["task"]),
        attacks=max((len(s.rates) for s in subjects), default=0),
        defenses=len({d.name for s in subjects for d in s.defenses}),
        subjects=shown,
        note=NOTE,
        under=percent(UNDER),
        legend=summary["legend"].splitlines(),
        published=summary["published"],
        errors=errors(summary["errors"]),
        command=command,
        digest=digest,
        order=order,
    )


def verdicts(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is said of each subject of a summary, and the figures behind it, as plain JSON data."""
    found = []
    for given in summary["subjects"]:
        said, notes = verdict(read(given), summary["tolerance"])
        figures = [{**m, "columns": given["columns"]} for m in given["measures"]]
        found.append({"name": given["name"], "verdict": said, "notes": notes, "measures": figures})
    return found


def joined(given: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Put the summaries of several grids into one; each subject is called by its grid's directory too.

    Raises InputError for grids of other kinds of model, or of another tolerance.
    """
    name, first = given[0]
    for other, summary in given[1:]:
        for key in ("task", "tolerance"):
            if summary[key] != first[key]:
                raise InputError(
                    f"{other}: {key} {summary[key]}, of {name} {first[key]}; give each its own page"
                )
    if len(given) == 1:
        return first
    return {
        **first,
        "grid": ", ".join(s["grid"] for _, s in given),
        "legend": "\n".join(f"{name}: {s['legend']}" for name, s in given),
        "subjects": [{**one, "name": f"{one['name']}, {name}"} for name, s in given for one in s["subjects"]],
        "published": [p for k, (_, s) in enumerate(given) for p in s["published"] if not _had(given[:k], p)],
        "errors": [e for _, s in given for e in s["errors"]],
    }


def _had(given: Sequence[tuple[str, dict[str, Any]]], paper: dict[str, Any]) -> bool:
    return any(paper in s["published"] for _, s in given)


def overview(subject: Subject) -> dict[str, Any]:
    """Return the table of the columns: heads, and for each line its name and cells (text, value, best)."""
    n, whole = len(subject.counted), [s.asr for s in subject.ranked]
    lowest = round(min(whole, default=math.nan), 3)
    lines = []
    for s in subject.standings.values():
        part = f" (of {s.measured})" if s.measured < n else ""
        best = s in subject.ranked and round(s.asr, 3) == lowest
        cells = [
            (percent(s.asr) + (part if known(s.asr) else ""), s.asr, best),
            (f"{s.under} of {s.measured}", s.under, False) if s.measured else (DASH, None, False),
            *([(useful(subject, s), s.utility, False)] if subject.utility else []),
            (f"{s.seconds:,.1f}" if known(s.seconds) else DASH, s.seconds, False),
        ]
        lines.append((s.name, [(text, order(v), top) for text, v, top in cells]))
    utility = [f"{subject.utility.capitalize()}, mean"] if subject.utility else []
    heads = ["Attack success rate, mean", f"Attacks under {percent(UNDER)}", *utility, "Seconds, mean"]
    return {"heads": heads, "lines": lines, "attacks": attacks(n)}


def errors(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return each error with the cells that it ended."""
    found: dict[str, list[str]] = {}
    for row in rows:
        place = f"{row['attack']}, seed {row['seed']}, {row['defense']}"
        found.setdefault(str(row["error"]), []).append(
            f"{row['model']}{'' if row.get('data') is None else ' on ' + row['data']}: {place}"
        )
    return list(found.items())


def order(number: Any) -> float | str:
    """Return a number as the page's script sorts it; "" is always last."""
    return number if known(number) else "Infinity" if number == math.inf else ""


def digest(script: str) -> str:
    """Return the hash by which the content security policy of the page knows its one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
