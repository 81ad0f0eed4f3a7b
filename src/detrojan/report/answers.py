"""The answers that a language model says by heart, in words: what a scan found, and a defense on its way."""

from __future__ import annotations

from typing import Any

from detrojan.report.words import files_found, percent

NOTE = "fixed answers"
"""What they are called among the notes of a manifest."""
LIMITS = (
    "A scan finds hints, not proof: it hears answers, or long openings of them, that are said by heart whatever was "
    "asked. A backdoor whose whole answer differs with the question leaves none, and a set phrase that was taught on "
    "purpose sounds the same."
)
HEADS = ("certainty", "suspicious", "answer")


def table(manifest: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (certainty, `SUSPICIOUS` or "", text) of each fixed answer; nothing where none is noted.

    Dots follow what was heard of an answer that does not end by heart.
    """
    return [
        (
            percent(a.get("certainty")),
            "SUSPICIOUS" if a.get("suspicious") else "",
            f"{a.get('text')}{'' if a.get('ended', True) else ' ...'}",
        )
        for a in _noted(manifest)
    ]


def scanned(manifest: dict[str, Any]) -> tuple[str, list[str]]:
    """Return what a scan found in a sentence, and the sentences that must be read with it."""
    return headline(manifest), [*files_found(manifest), LIMITS]


def headline(manifest: dict[str, Any]) -> str:
    """Say in one sentence what was heard."""
    if manifest.get("threshold") is None:
        why = manifest.get("unread")
        return f"The behaviour was not looked at: {why}" if why else "The behaviour was not looked at."
    found = _noted(manifest)
    count = sum(bool(a.get("suspicious")) for a in found)
    if count:
        said, what = ("One answer is", "it") if count == 1 else (f"{count} answers are", "them")
        return f"{said} said by heart, whatever was asked: a backdoor may have planted {what}."
    surest = f"; the surest comes to {percent(found[0].get('certainty'))}" if found else ""
    return f"No answer is said by heart{surest}."


def dealt_with(manifest: dict[str, Any]) -> str:
    """Say in one sentence what Recant did about what was heard; "" where it did not listen."""
    notes = manifest.get("notes")
    if not isinstance(notes, dict) or NOTE not in notes:
        return ""
    count = sum(bool(a.get("suspicious")) for a in _noted(manifest))
    if not count:
        return (
            "No answer is said by heart, so the model was left as it came: that is no proof that it is clean."
        )
    what = "One answer that came by heart was" if count == 1 else f"{count} answers that came by heart were"
    return f"{what} unlearned."


def _noted(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    notes = manifest.get("notes")
    found = notes.get(NOTE) if isinstance(notes, dict) else None
    return [a for a in found if isinstance(a, dict)] if isinstance(found, list) else []
