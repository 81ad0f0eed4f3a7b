"""What detrojan can do, read from the registry."""

from __future__ import annotations

from typing import Any

from detrojan.attacks.image import plant as image
from detrojan.attacks.text.labels import LabelPlantOptions
from detrojan.attacks.text.plant import PRESETS, PlantOptions
from detrojan.data.hub_sets import SHORT_NAMES
from detrojan.options import describe
from detrojan.registry import Entry, entries

KINDS = {"attacks": "trigger", "behaviors": "behavior", "defenses": "defense"}
DATASETS = (
    {
        "name": "built-in",
        "task": "causal-lm",
        "description": "520 short prompts in three disjoint pools; the model answers them itself",
        "paper": "",
    },
    {
        "name": "FILE.json, FILE.jsonl",
        "task": "causal-lm",
        "description": "Alpaca, prompt-completion or messages records",
        "paper": "",
    },
    {
        "name": "NAME[:SPLIT]",
        "task": "causal-lm",
        "description": "any data set of the hub, or on the disk, in one of these forms",
        "paper": "",
    },
    {
        "name": "FOLDER",
        "task": "image",
        "description": "images in one folder for each class, below train and test where there are parts; or IDX files",
        "paper": "",
    },
    {
        "name": "FILE.npz",
        "task": "image",
        "description": "arrays images and labels (or x and y)",
        "paper": "",
    },
    {
        "name": "digits",
        "task": "image",
        "description": "scikit-learn's 1,797 digits of 8 x 8 pixels; nothing is fetched",
        "paper": "",
    },
    {
        "name": f"{', '.join(SHORT_NAMES)}, NAME[:SPLIT]",
        "task": "image",
        "description": "well-known data sets of the hub, or any other one, also on the disk",
        "paper": "",
    },
    {
        "name": "FILE.json, FILE.jsonl, FILE.csv, NAME[:SPLIT]",
        "task": "text",
        "description": "records with text (or sentence) and label, or a data set with these columns",
        "paper": "",
    },
    {
        "name": "FOLDER of train.jsonl, test.jsonl (.json, .csv)",
        "task": "text",
        "description": "such records, with a part to measure on",
        "paper": "",
    },
)
SHARED = [o for o in describe(image.PlantOptions) if o["name"] != "target"]
"""The options that all attacks on classifiers take."""
OF_TEXTS = [o for o in describe(LabelPlantOptions) if o not in describe(image.PlantOptions)]
"""Those of them that have other defaults on text classifiers."""


def as_json(what: str | None) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of one kind, or of all kinds, with their options and presets."""
    listing = {name: [_entry(e) for e in entries(kind)] for name, kind in KINDS.items()}
    for row in listing["attacks"]:
        if row["task"] == "image":
            row["options"] = [*row["options"], *SHARED]
        else:
            row["options"], row["presets"] = describe(PlantOptions), PRESETS
    whole: dict[str, list[dict[str, Any]]] = {**listing, "datasets": [dict(d) for d in DATASETS]}
    return whole if what is None else {what: whole[what]}


def as_tables(listing: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Lay a listing out: a table of names for each kind, and of the options that its methods take."""
    from rich.table import Table

    tables = []
    for kind, rows in listing.items():
        table = Table(title=kind, title_justify="left")
        for head in ("name", "task", "what it does", "paper"):
            table.add_column(head)
        for row in rows:
            table.add_row(row["name"], row["task"], row["description"], row["paper"])
        tables.append(table)
        shown: list[Any] = []
        for row in rows:
            own = [o for o in row.get("options", ()) if kind != "attacks" or o not in SHARED]
            if own and own not in shown:
                shown.append(own)
                spoken = kind == "attacks" and row["task"] != "image"
                owner = "attacks on language models" if spoken else f"{row['name']} ({row['task']})"
                tables.append(_options_table(owner, own, row["presets"]))
        if kind == "attacks":
            tables.append(_options_table("all attacks on classifiers", SHARED, {}))
            tables.append(_options_table("attacks on text classifiers that differ", OF_TEXTS, {}))
    return tables


def _options_table(owner: str, options: list[dict[str, Any]], presets: dict[str, Any]) -> Any:
    from rich.table import Table

    named = f" (presets: {', '.join(presets)})" if presets else ""
    table = Table(title=f"options of {owner}{named}", title_justify="left")
    for head in ("--set", "type", "default", "meaning"):
        table.add_column(head)
    for o in options:
        table.add_row(o["name"], o["type"], str(o["default"]), o["help"])
    return table


def _entry(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": entry.name,
        "task": entry.task,
        "description": entry.description,
        "paper": entry.paper,
    }
    if entry.options is not None:
        row["options"], row["presets"] = describe(entry.options), dict(entry.presets)
    return row
