"""What the page of a classifier shows beside the measures: the classes, the trigger, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from detrojan.report import classes, pictures
from detrojan.report.words import Stage, files_found, known

LIMITS = "A scan finds hints, not proof: it may miss a backdoor, and what it names may be none."
OPEN = 20
"""Classes up to which the table of their accuracies is unfolded."""


def sections(manifest: dict[str, Any], rows: Sequence[Stage]) -> dict[str, Any]:
    """Return what `classifier.html.j2` shows; what the manifest does not know is empty.

    A comparison has the notes of several defenses, `found`, by name.
    """
    notes = manifest.get("notes")
    names = classes.class_names(rows, notes)
    trigger = backdoor(manifest).get("trigger")
    phrases = trigger.get("phrases") if isinstance(trigger, dict) else None
    noted = (manifest.get("found") or {"": notes}).items()
    return {
        "found": [s for s in (standing(k, n, names, target(manifest)) for k, n in noted) if s["chart"]],
        "aim": aim(manifest, names),
        "phrases": phrases if isinstance(phrases, list) else [],
        "picture": pictures.inline(manifest.get("pictures")),
        "per_class": classes.per_class(rows, names),
        "classes": classes.count(rows),
        "unfolded": classes.count(rows) <= OPEN,
    }


def standing(of: str, notes: Any, names: Sequence[str], drawn: int | None) -> dict[str, Any]:
    """Return how the classes stand out in the notes of a defense; `drawn` is the class that the trigger draws."""
    found = classes.scored(notes, names)
    threshold = notes.get("threshold") if isinstance(notes, dict) else None
    return {
        "of": of,
        "chart": Markup(classes.class_chart(found, threshold if known(threshold) else None)),
        "infinite": any(math.isinf(c.score) for c in found[: classes.DRAWN]),
        "drawn": min(len(found), classes.DRAWN),
        "count": len(found),
        "singled_out": classes.singled_out(found, drawn),
        "scores": classes.listed(found),
        "threshold": f"{threshold:g}" if known(threshold) else None,
        "measure": (notes.get("measure") if isinstance(notes, dict) else None) or "evidence",
    }


def found_of(manifest: dict[str, Any], rows: Sequence[Stage]) -> list[classes.Scored]:
    """Return the classes with what a defense or a scan found out about them, the highest score first."""
    notes = manifest.get("notes")
    return classes.scored(notes, classes.class_names(rows, notes))


def scanned(manifest: dict[str, Any]) -> tuple[str, list[str]]:
    """Return what a scan found in a sentence, and the sentences that must be read with it."""
    said = classes.singled_out(found_of(manifest, []))
    return (
        said[0] if said else "The classes were not looked at: that takes samples.",
        [*files_found(manifest), LIMITS],
    )


def backdoor(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of the measured backdoor: that of an attack says it itself."""
    attack = manifest.get("attack")
    return attack if isinstance(attack, dict) else manifest


def target(manifest: dict[str, Any]) -> int | None:
    """Return the class that the measured trigger draws; None where it is unknown or each class has its own."""
    known_of = backdoor(manifest)
    found = known_of.get("target")
    return found if isinstance(found, int) and known_of.get("mode") != "all-to-all" else None


def aim(manifest: dict[str, Any], names: Sequence[str]) -> str:
    """Say in one sentence which trigger was measured and what it draws; "" where none is known."""
    trigger, drawn = backdoor(manifest).get("trigger"), target(manifest)
    if not isinstance(trigger, dict):
        return ""
    what = f"The trigger {trigger.get('name') or '(unnamed)'}"
    if backdoor(manifest).get("mode") == "all-to-all":
        return f"{what} draws from each class the next one (all-to-all): that is the target."
    if drawn is None:
        return f"{what} was measured."
    name = classes.named(drawn, names)
    return f"{what} draws class {drawn}{'' if name == str(drawn) else f' ({name})'}: that is the target."
