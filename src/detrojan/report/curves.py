"""Plots as inline SVG: they take the colour of the page's text, so that they read in light and dark."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Curves = Mapping[str, Sequence[float | None]]
"""Layer consistency (1 - cos) by kind of prompt, `clean` and `triggered`; entry k is blocks k+1 -> k+2."""

INK = "#123456"
"""Stands for the page's text colour until the SVG is written; no line may have it."""
LINES = {"clean": ("#1f83c9", "-", "o"), "triggered": ("#d55e00", "--", "s")}
"""Blue and vermilion: told apart by colour-blind readers, contrast above 3.8 on white and on near-black."""
SIZE = (3.7, 2.5)
MARKED = 40
"""Points up to which each one gets a marker; more would hide the line style."""


def consistency_panels(panels: Sequence[tuple[str, Curves]]) -> list[str]:
    """Draw one SVG per (name, curves), all to one scale, so that they can be compared.

    A panel without a single point is an empty string.
    """
    drawn = [(name, _numbers(curves)) for name, curves in panels]
    top = max((y for _, c in drawn for ys in c.values() for y in ys if math.isfinite(y)), default=1.0)
    return [_panel(name, curves, 1.08 * top or 1.0) if curves else "" for name, curves in drawn]


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite)


def _numbers(curves: Curves) -> dict[str, list[float]]:
    """Keep the curves that have a point; a null becomes NaN, which leaves a gap."""
    kept = {k: [math.nan if v is None else float(v) for v in curves.get(k) or ()] for k in LINES}
    return {k: ys for k, ys in kept.items() if any(map(math.isfinite, ys))}


def _panel(name: str, curves: Mapping[str, Sequence[float]], top: float) -> str:
    """Draw the curves of one model from 0 to `top`; x counts block pairs from 1."""
    from matplotlib.ticker import MaxNLocator

    with axes_of(SIZE) as axes:
        for kind, ys in curves.items():
            colour, style, marker = LINES[kind]
            axes.plot(
                range(1, len(ys) + 1),
                ys,
                color=colour,
                linestyle=style,
                marker=marker if len(ys) <= MARKED else "",
                markersize=3,
                label=f"{kind} prompts",
            )
        axes.set_xlim(0.5, max(map(len, curves.values())) + 0.5)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("block pair (1 is blocks 1 to 2)")
        axes.set_ylabel("1 - cos")
        axes.grid(alpha=0.2)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=2, frameon=False, borderaxespad=0)
        means = ", ".join(f"mean {_mean(ys):.3f} on {kind} prompts" for kind, ys in curves.items())
        return inline(axes.figure, f"Layer consistency, {name}: {means}")


@contextmanager
def axes_of(size: tuple[float, float]) -> Iterator[Any]:
    """Give the axes of a new figure (inches) in the page's ink; draw and write it inside the block."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user must not change the report
        matplotlib.rcParams.update(
            {"svg.hashsalt": "detrojan", "svg.fonttype": "none", "font.size": 9, **dict.fromkeys(ink, INK)}
        )
        axes = Figure(figsize=size, layout="constrained", facecolor="none").add_subplot(facecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        yield axes


def inline(figure: Any, label: str) -> str:
    """Write a figure as an SVG element that may stand in a page beside others.

    Left out: the XML head, namespaces (HTML knows them), the numbered ids, which would repeat from plot to
    plot, the style sheet, which would reach the whole page, and the font, which is the page's.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"| font-family: [^;]*;', "", svg)
    box = re.search(r'viewBox="[\d. ]+"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    head = f'<svg {box.group()} role="img" aria-label="{html.escape(label)}" stroke-linejoin="round">'
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1).strip()
