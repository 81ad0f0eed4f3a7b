"""Several manifests on one page: which models belong together, and the manifest that the page is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from detrojan.report.canaries import sentences
from detrojan.report.page import made
from detrojan.report.sections import backdoor
from detrojan.report.words import NAMES, Part, classifies, stages

Named = tuple[str, dict[str, Any]]
"""A manifest and what its directory is called."""
WEIGHTS = (".safetensors", ".gguf", ".pt", ".pth", ".bin")
ALIKE = {
    "template": "template",
    "n_triggered": "number of triggered samples",
    "n_clean": "number of clean samples",
    "perplexity_of": "answers whose perplexity is taken",
}
"""What results must share to be compared one to one."""


def compare(given: Sequence[Named]) -> tuple[dict[str, Any], list[Part]]:
    """Return the manifest of a comparison, which holds every stage, and its parts, one for each victim.

    What a defense started from stands there once: a cleaned model joins the attack, the demo or the other cleaned
    models whose victim has the same weights by their SHA-256.
    """
    parts = [part(chain) for chain in grouped(given)]
    rows = [(p, stage) for p in parts for stage in stages(p.manifest)]
    several = len(parts) > 1
    keys = [f"{stage.name}, {p.name}" if several else stage.name for p, stage in rows]
    triggers = [spec(m) for _, m in given if spec(m)]
    alone = next((m for _, m in given if spec(m)), {}) if _equal(triggers) else {}
    noted = {name: m["notes"] for name, m in given if isinstance(m.get("notes"), dict)}
    merged = {
        "kind": "compare",
        "task": given[0][1].get("task"),
        "model": ", ".join(name for name, _ in given),
        "command": "\n".join(dict.fromkeys(str(m["command"]) for _, m in given if m.get("command"))),
        "attack": backdoor(alone),
        "pictures": next((p for _, m in given if (p := m.get("pictures"))), None) if alone else None,
        "found": noted,
        "stages": dict(zip(keys, (stage.result for _, stage in rows), strict=True)),
        "labels": {
            key: f"{p.name}: {stage.label}" if several else stage.label
            for key, (p, stage) in zip(keys, rows, strict=True)
        },
        "sources": {name: made(m) for name, m in given},
    }
    return merged, parts


def grouped(given: Sequence[Named]) -> list[list[Named]]:
    """Put every cleaned model to its victim; what was attacked comes before what was cleaned."""
    chains: list[list[Named]] = []
    for each in sorted(given, key=lambda g: g[1].get("kind") == "clean"):
        start = weights(each[1].get("inputs")) if each[1].get("kind") == "clean" else frozenset()
        home = next((c for c in chains if start and start <= victim(c[0][1])), None)
        if home is None:
            chains.append([each])
        else:
            home.append(each)
    return chains


def victim(manifest: dict[str, Any]) -> frozenset[str]:
    """Return the hashes of the weights that a defense would start from."""
    if manifest.get("kind") == "clean":
        return weights(manifest.get("inputs"))
    files = manifest.get("outputs") or {}
    below = "attacked/" if manifest.get("kind") == "demo" else ""
    return weights({k: v for k, v in files.items() if k.startswith(below)})


def weights(files: dict[str, str] | None) -> frozenset[str]:
    """Return the hashes of the files that hold weights."""
    return frozenset(v for k, v in (files or {}).items() if k.endswith(WEIGHTS))


def part(chain: Sequence[Named]) -> Part:
    """Make one manifest of a victim's: its stages before any defense, then those after each."""
    (name, first), rest = chain[0], chain[1:]
    if not rest:
        return Part(name, first)
    found = begun(first)
    used = Counter([*found, *(defense(m) for _, m in chain if m.get("kind") == "clean")])
    start = "attacked" if "attacked" in found else "before"
    for place, manifest in chain:
        if manifest.get("kind") != "clean":
            continue
        key = defense(manifest)
        if used[key] > 1:
            key = f"{NAMES.get(key, key)} ({place})"
        found[key] = after(manifest)
        found[start] = found[start] or manifest.get("before")
    triggers = [t for _, m in chain if (t := spec(m))]
    differ = [] if _equal(triggers) else ["trigger"]
    results = [r for r in found.values() if r]
    differ += [words for key, words in ALIKE.items() if not _equal([r[key] for r in results if r.get(key)])]
    proven = [
        f"{NAMES.get(defense(m), defense(m))}: {said}" for _, m in chain for said in sentences(m.get("proof"))
    ]
    remark = f"Not all was measured alike, so compare with care: the {' and the '.join(differ)} differed."
    whole = {"kind": "compare", "task": first.get("task"), "stages": found}
    return Part(name, whole, ((remark,) if differ else ()) + tuple(proven))


def begun(first: dict[str, Any]) -> dict[str, Any]:
    """Return the stages of a victim's first manifest, without those after a defense that `clean` made."""
    if first.get("kind") == "demo":
        return dict(first["stages"])
    if first.get("kind") == "attack":
        return {"base": first.get("before"), "attacked": after(first)}
    return {"before": first.get("before")}


def after(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was measured at the end, with the seconds that it took to get there."""
    result = manifest.get("after")
    return {"seconds": manifest.get("seconds"), **result} if result else None


def defense(manifest: dict[str, Any]) -> str:
    """Return the name of the defense that made a cleaned model."""
    return str((manifest.get("method") or {}).get("defense") or "the defense")


def spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the measured backdoor, as manifests of an attack and of a defense both tell it; {} for none."""
    told = backdoor(manifest)
    keys = ("trigger", "mode", "target") if classifies(manifest) else ("trigger", "behavior")
    return {k: told.get(k) for k in keys} if isinstance(told.get("trigger"), dict) else {}


def _equal(values: Sequence[Any]) -> bool:
    return all(v == values[0] for v in values)
