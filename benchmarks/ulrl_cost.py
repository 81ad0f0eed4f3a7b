"""What ULRL costs beside plain fine-tuning of the same number of passes.

    python benchmarks/ulrl_cost.py --repeats 5 --json ulrl_cost.json

All run in turn in one process on the same model and samples; the figures are medians and their ratio to fine-tuning.
The model is trained on digits and carries a BadNets backdoor; images are enlarged to `--edge`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from detrojan import registry
from detrojan.attacks.image.plant import PlantOptions, Victim
from detrojan.data.labelled import read_labelled
from detrojan.defenses.ulrl import UlrlOptions, locate, passes
from detrojan.models.classifier import load_classifier
from detrojan.models.zoo import new_classifier
from detrojan.types import Classifier, Rows, Run

from costs import record, timed, write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clean", type=int, default=600)
    parser.add_argument("--edge", type=int, default=28)
    parser.add_argument("--json", type=Path, help="keep the record here, for publish.py")
    arguments = parser.parse_args()
    victim, clean = backdoored(arguments.edge, arguments.clean)
    ways: dict[str, Callable[[Classifier], Any]] = {
        "fine-tuning": partial(defend, "finetune", "default", clean),
        "fine-tuning, batches of 32": partial(defend, "finetune", "default", clean, batch_size=32),
        "ULRL as published": partial(defend, "ulrl", "paper-cifar10", clean),
        "ULRL default": partial(defend, "ulrl", "default", clean),
        "of which locating": lambda c: locate(c, clean, UlrlOptions(), Run()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            own = victim.replace(model=copy.deepcopy(victim.model))
            seconds[name].append(timed(partial(way, own)))
    options = UlrlOptions()
    own_passes = passes(options, len(clean))
    what = f"a defense on {len(clean)} images, {options.epochs} passes (ULRL default {own_passes})"
    write(record(what, seconds, repeats=arguments.repeats), arguments.json)


def backdoored(edge: int, clean: int) -> tuple[Classifier, Rows]:
    """Return a small classifier with a backdoor, and clean samples that it was not trained on."""
    digits = read_labelled("digits", "image", split="train")
    images = torch.as_tensor(digits.inputs)
    scaled = interpolate(images.float(), (edge, edge), mode="bilinear").round().to(torch.uint8)
    whole = Rows({"pixel_values": scaled}, digits.labels)
    names = tuple(map(str, range(10)))
    victim = load_classifier(new_classifier("preact-resnet8", names, tuple(scaled.shape[1:]), seed=0))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    entry = registry.find("trigger", "badnets", "image")
    training = whole.take(order[clean:])
    entry.value.plant(Victim(victim, training, PlantOptions(epochs=10), Run()), entry.make_options({}))
    return victim, whole.take(order[:clean])


def defend(name: str, preset: str, clean: Rows, classifier: Classifier, **options: Any) -> Classifier:
    entry = registry.find("defense", name, "classifier")
    return entry.value(classifier, clean, entry.make_options(options, preset), Run())


if __name__ == "__main__":
    main()
