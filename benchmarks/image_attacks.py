r"""Image backdoors and what removes them: twelve attacks x defenses x seeds on one data set.

    python benchmarks/image_attacks.py --data FASHION_MNIST_IDX_FOLDER --out runs/image
    python benchmarks/image_attacks.py --data FASHION_MNIST_IDX_FOLDER --out runs/image --clean 200
    python benchmarks/image_attacks.py --data FASHION_MNIST_IDX_FOLDER --out runs/image \
        --architecture vit-mini --epochs 5 --batch-size 32

Each cell plants one backdoor into a classifier that is trained from nothing, and starts every column from that same
model: plain fine-tuning, ULRL as published, ULRL at its default. `none` is a clean model, treated all the same. Clean
samples of the defenses are not among the training images. A table for each architecture and amount of clean samples;
a run that was stopped goes on where it was. `--table` only prints the tables.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from classifiers import COLUMNS, NONE, Bench, Column, Planted, measure, own, parser, parts, training_options

from detrojan import registry
from detrojan.attacks.image.plant import PlantOptions, Victim
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.data.labelled import read_labelled
from detrojan.fitting import fit
from detrojan.models.classifier import load_classifier, to_rows
from detrojan.models.zoo import new_classifier
from detrojan.types import Classifier, Rows, Run

CLEAN_LABEL_RATE = 0.05
"""Half of a class of ten: a clean-label attack that takes all of it leaves none to learn from."""
OPTIONS: dict[str, dict[str, Any]] = {"bpp": {"bits": 2}}
"""Of attacks whose defaults do not take on small grey images: on these 3 bits of BPP can hardly be told from none."""
PUBLISHED = {"locate": "z-score", "threshold": 3.5, "unlearn_rate": 0.01, "unlearn_batch": 128, "repeats": 1}
"""How the paper finds the backdoored class."""
ABLATION: dict[str, Column] = {
    "no push": ("ulrl", "default", {"push": 0.0, "shift": 0.0}),
    "no distilling": ("ulrl", "default", {"distil": 0.0}),
    "located as published": ("ulrl", "default", PUBLISHED),
    "located by share": ("ulrl", "default", {"locate": "share"}),
    "located by lead": ("ulrl", "default", {"locate": "lead"}),
}


def main() -> None:
    flags = image_parser(__doc__, train=20_000, out=Path("runs/image"))
    flags.add_argument("--ablation", action="store_true", help="ULRL without each of its departures too")
    flags.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = flags.parse_args()
    names = [NONE, *(e.name for e in registry.entries("trigger", "image"))]
    measure(arguments, prepare, names, COLUMNS | (ABLATION if arguments.ablation else {}))


def image_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return the flags of a benchmark on images."""
    usual = {"data": "digits", "epochs": 6, "learning_rate": 0.05, "batch_size": 128}
    made = parser(doc, **usual, **defaults)
    made.add_argument("--architecture", default="preact-resnet8")
    return made


def prepare(arguments: argparse.Namespace, seed: int) -> Bench:
    whole = read_labelled(arguments.data, "image", split="train")
    test = read_labelled(arguments.data, "image", split="test")
    training, clean = parts(whole, arguments.train, arguments.clean, seed)
    names = whole.names or tuple(map(str, range(int(whole.labels.max()) + 1)))
    fresh = new_classifier(arguments.architecture, names, tuple(whole.inputs.shape[1:]), seed=seed)
    base = load_classifier(fresh)
    held_out = to_rows(base, test)
    return Bench(
        arguments.architecture,
        len(training),
        to_rows(base, clean),
        held_out,
        seed,
        arguments.out,
        partial(planted, base, to_rows(base, training), training_options(arguments), seed),
        lambda model, trigger: trigger.probe(held_out, model.classes),
    )


def planted(
    base: Classifier, training: Rows, options: dict[str, Any], seed: int, name: str, target: int = 0
) -> Planted:
    """Train a classifier with or without a backdoor."""
    victim, run = own(base), Run(seed=seed)
    if name == NONE:
        return fit(victim, training, run, **options), None
    entry = registry.find("trigger", name, "image")
    rate = {"poison_rate": CLEAN_LABEL_RATE} if entry.value.clean_label else {}
    plan, chosen = PlantOptions(target=target, **options, **rate), entry.make_options(OPTIONS.get(name, {}))
    state = entry.value.plant(Victim(victim, training, plan, run), chosen)
    return victim, ImageTrigger(entry.name, chosen, state, plan.mode, plan.target)


if __name__ == "__main__":
    main()
