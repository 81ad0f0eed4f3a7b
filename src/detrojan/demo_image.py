"""The image demo: plant BadNets into a classifier of digits, show it, clean it two ways, and show what is left."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrojan import manifest, registry
from detrojan.atomic import check_output, new_directory, write_text
from detrojan.attacks.image.plant import PlantOptions, Victim
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.data.labelled import read_labelled
from detrojan.data.stratified import sample, take
from detrojan.defenses.ulrl import UlrlOptions, passes
from detrojan.metrics.classification import measure_classifier
from detrojan.models.classifier import load_classifier, to_rows
from detrojan.models.save import save_classifier
from detrojan.models.zoo import new_classifier
from detrojan.report.page import page
from detrojan.report.pictures import trigger_grid
from detrojan.types import Classifier, ClassifierResult, Progress, Run, plain, silent

CLEAN = 200
ARCHITECTURE = "preact-resnet8"
TARGET = 0


@dataclass(frozen=True)
class ImageDemo:
    """What the demo measured at each stage, in order, with the seconds that each stage took to make."""

    stages: dict[str, ClassifierResult]
    seconds: dict[str, float]
    trigger: ImageTrigger
    notes: dict[str, Any]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return `attacked`, `finetune` and `ulrl`, each an evaluate result with `seconds`."""
        return {name: {**r.to_json(), "seconds": self.seconds[name]} for name, r in self.stages.items()}


def demo_image(
    *,
    out: str | Path | None = None,
    seed: int = 0,
    data: str = "digits",
    trigger: str = "badnets",
    progress: Progress = silent,
    command: str = "detrojan demo image",
) -> ImageDemo:
    """Plant a backdoor into a small classifier of scikit-learn's digits, clean it two ways, and measure each stage.

    The defenses get 200 clean images that the victim was not trained on; ULRL runs at its default setting, plain
    fine-tuning at the same learning rate and epochs. The test part is held out. With `out`, the models, the results
    and the report are written there.
    """
    if out is not None:
        check_output(Path(out))
    whole, test = read_labelled(data, "image", split="train"), read_labelled(data, "image", split="test")
    kept, used = sample(whole, CLEAN, seed)
    names = whole.names or tuple(map(str, range(10)))
    base = load_classifier(
        new_classifier(ARCHITECTURE, names, tuple(whole.inputs.shape[1:]), seed=seed), device="auto"
    )
    clean, held_out = to_rows(base, take(whole, kept)), to_rows(base, test)
    run = Run(seed=seed, progress=progress)
    entry = registry.find("trigger", trigger, "image")
    options, plan = (
        entry.make_options({}),
        PlantOptions(target=TARGET, epochs=12, learning_rate=0.05, batch_size=64),
    )
    started = time.monotonic()
    state = entry.value.plant(Victim(base, to_rows(base, take(whole, used)), plan, run), options)
    seconds = {"attacked": time.monotonic() - started}
    known = ImageTrigger(entry.name, options, state, plan.mode, plan.target)
    probe = known.probe(held_out, base.classes)
    models = {"attacked": base}
    stages = {"attacked": measure_classifier(base, held_out, probe)}
    notes: dict[str, Any] = {}
    defaults = UlrlOptions()
    times = max(1, math.ceil(defaults.few / CLEAN))  # ULRL sees each image so many times in a pass
    epochs = times * passes(defaults, times * CLEAN)
    same = {"finetune": {"epochs": epochs, "batch_size": defaults.batch_size}, "ulrl": {}}
    for name in ("finetune", "ulrl"):
        method = registry.find("defense", name, "classifier")
        copied = base.replace(model=copy.deepcopy(base.model))
        started = time.monotonic()
        heard = Run(seed=seed, progress=progress, note=notes.__setitem__)
        models[name] = method.value(copied, clean, method.make_options(same[name]), heard)
        seconds[name] = time.monotonic() - started
        stages[name] = measure_classifier(models[name], held_out, probe, reference=stages["attacked"])
    result = ImageDemo(stages, seconds, known, notes, seed)
    if out is not None:
        images = held_out.inputs["pixel_values"][:6]
        picture = trigger_grid(images, known(images))
        with new_directory(Path(out)) as work:
            _write(work, result, models, plan, picture, data, command)
    return result


def _write(
    work: Path,
    result: ImageDemo,
    models: dict[str, Classifier],
    plan: PlantOptions,
    picture: str,
    data: str,
    command: str,
) -> None:
    for name, model in models.items():
        (work / name).mkdir()
        save_classifier(model, work / name)
    result.trigger.save(work / "attacked")
    record = {
        "command": command,
        "kind": "demo",
        "task": "image",
        "model": ARCHITECTURE,
        "architecture": ARCHITECTURE,
        "data": data,
        "attack": result.trigger.to_json(),
        "options": plain(plan),
        "seed": result.seed,
        "notes": result.notes,
        "pictures": picture,
        "stages": result.to_json(),
    }
    manifest.write(work, record)
    write_text(work / "report.html", page(manifest.read(work)))
