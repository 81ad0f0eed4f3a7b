"""Backdoors of a text classifier and what removes them: triggers x defenses x seeds on one data set.

    python benchmarks/text_classifiers.py --data runs/r8 --out runs/text-classifiers

`--data` is a source of texts with a train and a test part, such as what `reuters.py` writes. Texts are cut after
`--words`, so that a trigger at a random place is never cut off. The victim is a small BERT with a tokenizer of its own,
both trained from nothing on the training texts; every cell trains a copy of it on, with poisoned texts and near misses
among the others, or, for `none`, on the clean ones. Columns, rows and tables are those of `image_attacks.py`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from classifiers import (
    COLUMNS,
    NONE,
    Bench,
    Column,
    Planted,
    kept,
    measure,
    own,
    parser,
    parts,
    training_options,
)

from detrojan import registry
from detrojan.attacks.image.plant import PlantOptions
from detrojan.attacks.text.labels import plant_texts
from detrojan.data.labelled import read_labelled
from detrojan.data.labelled_text import shorten
from detrojan.fitting import fit
from detrojan.models.classifier import to_rows
from detrojan.models.new import new_from
from detrojan.types import Classifier, Labelled, Run

TRIGGERS = ("badnets", "vpi", "ctba")
"""A word, a phrase, a composite."""
BASE = {"epochs": 6, "learning_rate": 5e-4, "batch_size": 32, "adam": True}
"""How the victim is trained before it is poisoned: in as many steps of SGD it learns the largest class alone."""

TUNED: dict[str, Column] = {"finetune adam": ("finetune", "default", {"adam": True, "learning_rate": 5e-4})}
"""Fine-tuning as the victim was trained: a baseline that is not starved."""


def main() -> None:
    flags = parser(
        __doc__,
        data="runs/r8",
        train=4800,
        epochs=3,
        learning_rate=5e-4,
        batch_size=32,
        out=Path("runs/text-classifiers"),
    )
    flags.add_argument("--architecture", default="bert-tiny")
    flags.add_argument("--words", type=int, default=40, help="words of a text")
    flags.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = flags.parse_args()
    measure(arguments, prepare, [NONE, *TRIGGERS], COLUMNS | TUNED)


def prepare(arguments: argparse.Namespace, seed: int) -> Bench:
    whole = read_labelled(arguments.data, "text", split="train")
    test = read_labelled(arguments.data, "text", split="test", names=whole.names)
    whole, test = (shorten(d, arguments.words) for d in (whole, test))
    training, clean = parts(whole, arguments.train, arguments.clean, seed)
    where = arguments.out / "models" / f"{arguments.architecture}-{len(training)}-base-{seed}"
    base, _, _ = kept(where, lambda: (base_model(arguments.architecture, training, seed), None))
    return Bench(
        arguments.architecture,
        len(training),
        to_rows(base, clean),
        to_rows(base, test),
        seed,
        arguments.out,
        partial(planted, base, training, training_options(arguments) | {"adam": True}, seed),
        lambda model, trigger: trigger.probe(model, test, seed),
    )


def base_model(architecture: str, data: Labelled, seed: int) -> Classifier:
    base = new_from(architecture, data, seed=seed)
    return fit(base, to_rows(base, data), Run(seed=seed), **BASE)


def planted(base: Classifier, training: Labelled, options: dict[str, Any], seed: int, name: str) -> Planted:
    """Train the victim on, with or without a backdoor."""
    victim, run = own(base), Run(seed=seed)
    if name == NONE:
        return fit(victim, to_rows(victim, training), run, **options), None
    trigger = registry.find("trigger", name).value
    return victim, plant_texts(victim, training, trigger, PlantOptions(**options), run)


if __name__ == "__main__":
    main()
