"""The model card (README.md): what was done, what was measured, what is not known, how to load the model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrojan.report import canaries, classes, classifier, language, sections
from detrojan.report.words import Stage, Voice, classifies, printable, rated, stages

PLANTED = "This model carries a backdoor that was planted on purpose: use it for tests alone."
UNMEASURED = "No trigger was measured: nothing here says whether a backdoor remains."
UNTRIED = "No trigger was measured but the canaries' own: a hidden backdoor may remain."
UNKNOWN = "An unknown trigger other than the measured one may remain: none was looked for."
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*(?<!\.gguf)")
FACTS = ("model", "method", "data", "template", "options", "seed", "command")
CLASSIFIER_FACTS = (
    *FACTS[:2],
    "architecture",
    "trigger",
    "mode",
    "target",
    "data",
    "measured_on",
    *FACTS[4:],
)
CARD = """# {method} on {model}

{done} with detrojan. `detrojan.json` holds every detail; `report.html` shows {shows}.

## What was done

{facts}

## What was measured

{seen}{table}

## What is not known

{unknown}

## How to load it

```python
{loading}
```
"""
FROM = '.from_pretrained("path/to/this/directory")'
TOKENIZER = f"tokenizer = AutoTokenizer{FROM}"
LANGUAGE = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM{FROM}
{TOKENIZER}"""
TEXT = f"""from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification{FROM}
{TOKENIZER}"""
IMAGE = f"""from transformers import AutoModelForImageClassification
{{zoo}}
model = AutoModelForImageClassification{FROM}"""
ZOO = """
import detrojan.models.zoo  # registers the architecture
"""
MODULE = """from safetensors.torch import load_model

model = ...  # the module, built as it was before
load_model(model, "path/to/this/directory/model.safetensors")"""


def voice(manifest: dict[str, Any]) -> Voice:
    """Return how results of this manifest's kind of model are told."""
    if classifies(manifest):
        return classifier
    return language


def model_card(manifest: dict[str, Any]) -> str:
    """Write the README.md of an output directory: what was done, what was measured, what is not known."""
    rows, model, method = stages(manifest), str(manifest.get("model") or ""), manifest.get("method") or {}
    planted, last, speech = manifest.get("kind") == "attack", rated(rows[-1:]), voice(manifest)
    keys = CLASSIFIER_FACTS if classifies(manifest) else FACTS
    facts = {k: manifest[k] for k in keys if manifest.get(k) is not None}
    table = [["", *(s.label for s in rows)], ["---"] * (len(rows) + 1)]
    table += [[label, *cells] for label, _, cells in speech.measures(rows)]
    seen = [PLANTED] if planted else [note for s in last for note in speech.seen(s)]
    seen += canaries.sentences(manifest.get("proof"))
    if classifies(manifest):
        seen += classes.singled_out(sections.found_of(manifest, rows), sections.target(manifest))
    unknown = [not_known(manifest, last)]
    unknown += [f"Measured {speech.scope(s.result)}, {s.label}; elsewhere it may differ." for s in rows[-1:]]
    hub = HUB_NAME.fullmatch(model) and not Path(model).exists()
    head = f"---\ntags: [detrojan]\n{f'base_model: {model}' + chr(10) if hub else ''}---\n\n"
    return head + CARD.format(
        method=code(method.get("attack") or method.get("defense") or "detrojan"),
        model=code(model or "a model"),
        done="A backdoor was planted on purpose" if planted else "A defense against backdoors was applied",
        shows="it as a page" if classifies(manifest) else "answers",
        facts="\n".join(f"- {key}: {code(fact)}" for key, fact in facts.items()),
        table="\n".join(f"| {' | '.join(map(cell, line))} |" for line in table)
        if rows
        else "Nothing was measured.",
        seen="".join(f"{cell(note)}\n\n" for note in seen),
        unknown="\n".join(f"- {cell(note)}" for note in unknown),
        loading=loading(manifest),
    )


def not_known(manifest: dict[str, Any], measured: Sequence[Stage]) -> str:
    """Say what no measurement here can tell; `measured` are the stages in which a trigger was."""
    if measured:
        return UNKNOWN
    return UNTRIED if manifest.get("proof") else UNMEASURED


def loading(manifest: dict[str, Any]) -> str:
    """Return the code that loads the model: by its task, and by its architecture where transformers has none."""
    if not classifies(manifest):
        return LANGUAGE
    if manifest.get("architecture") == "module":
        return MODULE
    if manifest["task"] == "text":
        return TEXT
    return IMAGE.format(zoo=ZOO if manifest.get("architecture") else "")


def code(fact: object) -> str:
    """Write a fact as a Markdown code span on one line, where no markup in it takes effect."""
    text = fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True)
    return "`" + " ".join(printable(text, 500).replace("`", "'").split()) + "`"


def cell(text: str) -> str:
    """Write text so that it stays inside one cell of a Markdown table, with no HTML in effect."""
    return (
        " ".join(printable(text, 500).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    )
