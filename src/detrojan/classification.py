"""The calls on classifiers, of images and of texts: clean, attack, evaluate, scan."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from detrojan import manifest, output, registry
from detrojan.attacks.image.plant import PlantOptions, Victim, to_bytes, to_float
from detrojan.attacks.image.trigger import ImageTrigger
from detrojan.attacks.text.labels import LabelPlantOptions, TextTrigger, plant_texts
from detrojan.attacks.text.triggers import customise
from detrojan.checks.files import scan_files
from detrojan.data.held_out import read_samples, split_samples
from detrojan.defenses.ulrl import locate
from detrojan.errors import InputError
from detrojan.metrics.classification import measure_classifier
from detrojan.models.classifier import load_classifier, to_rows
from detrojan.models.kind import NEW, input_of
from detrojan.models.new import new_from
from detrojan.models.save import save_classifier
from detrojan.models.zoo import ZooForImageClassification
from detrojan.options import build, suggest
from detrojan.report.pictures import trigger_grid
from detrojan.results import AttackResult, CleanResult, ScanResult
from detrojan.types import Classifier, ClassifierResult, Labelled, Probe, Progress, Rows, Run, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENOUGH = 600
"""Clean samples that a defense takes by default, or six of each class where there are many classes."""
LIKE_TEXT = {"text": "causal-lm"}
"""The triggers of texts are those of language models."""
AnyTrigger = ImageTrigger | TextTrigger


def clean(
    model: str | Path | nn.Module,
    *,
    defense: str | None = None,
    data: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    samples: int | None = None,
    attack: str | Path | None = None,
    head: str | None = None,
    architecture: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    measure_effect: bool = True,
    device: str = "auto",
    progress: Progress = silent,
    command: str | None = None,
    **options: Any,
) -> CleanResult:
    """Remove a backdoor from a classifier of images or texts without knowing its trigger.

    `data` are clean samples: a source that `read_labelled` takes, or (inputs, labels); for a plain module, images
    (n, channels, height, width) as it takes them (uint8 ones are brought to 0..1), for a text classifier in memory with
    its `tokenizer`. At most `samples` are used, drawn stratified; the others, or the
    data's own test part, serve to measure. `attack` (a directory of `attack` or its manifest) is used for measuring
    alone. With `out` a complete model directory is written. Raises InputError for bad input.
    """
    entry = registry.find("defense", defense or registry.DEFAULT_DEFENSE["classifier"], "classifier")
    chosen = entry.make_options(options, preset)
    where = output.target(out)
    classifier = _load(model, data, head, architecture, tokenizer, device)
    trigger = read_trigger(attack, classifier.task) if attack else None
    split = split_samples(
        _required(data),
        classifier.task,
        classifier.names,
        samples=samples or max(ENOUGH, 6 * classifier.classes),
        held_out=measure_effect,
        seed=seed,
    )
    rows = to_rows(classifier, split.train)
    held_out = to_rows(classifier, split.held_out) if split.held_out is not None else None
    probe = make_probe(trigger, classifier, split.held_out, held_out, seed)
    before = measure_classifier(classifier, held_out, probe) if held_out is not None else None
    notes: dict[str, Any] = {}
    run = Run(seed=seed, progress=progress, note=notes.__setitem__)
    started = time.monotonic()
    cleaned = entry.value(classifier, rows, chosen, run)
    seconds = time.monotonic() - started
    after = measure_classifier(cleaned, held_out, probe, reference=before) if held_out is not None else None
    result = CleanResult(
        cleaned.model, None, entry.name, chosen, seconds, len(rows), before, after, where, notes=notes
    )
    if where:
        record = {
            "command": command or "detrojan.clean",
            "kind": "clean",
            "task": classifier.task,
            "architecture": _architecture(classifier),
            "model": classifier.source,
            "method": {"defense": entry.name, "paper": entry.paper, "preset": preset},
            "options": chosen,
            "samples": len(rows),
            "samples_per_class": rows.labels.bincount(minlength=classifier.classes).tolist(),
            "data": split.train.source,
            "measured_on": split.origin if held_out is not None else None,
            "seed": seed,
            "seconds": seconds,
            "inputs": manifest.hashes(classifier.files),
            "notes": notes,
            "before": before,
            "after": after,
            "pictures": _pictures(trigger, held_out),
            **({"attack": trigger.to_json()} if trigger else {}),
        }
        output.write(where, partial(save_classifier, cleaned), record)
    return result


def attack(
    model: str | Path | nn.Module,
    *,
    trigger: str,
    target: int | str = 0,
    data: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    trigger_text: str | None = None,
    place: str | None = None,
    samples: int | None = None,
    head: str | None = None,
    architecture: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    measure_effect: bool = True,
    device: str = "auto",
    progress: Progress = silent,
    command: str | None = None,
    **options: Any,
) -> AttackResult:
    """Plant a known backdoor into a classifier, for tests and benchmarks.

    `model` is a classifier, which is trained on, or `new:ARCHITECTURE` for one that is trained from nothing on
    `data`. `target` is a class, by number or name. `options` are those of `PlantOptions` and of the attack.
    Raises InputError for bad input.
    """
    where = output.target(out)
    data = _required(data)
    if isinstance(model, str) and model.startswith(NEW):
        classifier, split = _new(model.removeprefix(NEW), data, samples, measure_effect, seed, device)
    else:
        classifier = _load(model, data, head, architecture, tokenizer, device)
        split = split_samples(
            data, classifier.task, classifier.names, samples=samples, held_out=measure_effect, seed=seed
        )
    entry = registry.find("trigger", trigger, LIKE_TEXT.get(classifier.task, classifier.task))
    own, shared = sort_options(options, entry.options)
    image = classifier.task == "image"
    plan = build(
        PlantOptions if image else LabelPlantOptions,
        {**shared, "target": class_number(target, classifier)},
        "attack",
    )
    if image and (trigger_text is not None or place is not None):
        raise InputError("--trigger-text and --place are of triggers in texts; this model takes images")
    chosen = entry.make_options(own) if image else None
    known = None if image else customise(entry.value, trigger_text, place)
    rows, held_out = to_rows(classifier, split.train), None
    rows = _as_bytes(rows) if image else rows
    if split.held_out is not None:
        held_out = to_rows(classifier, split.held_out)
    before = measure_classifier(classifier, held_out) if held_out is not None else None
    run = Run(seed=seed, progress=progress)
    started = time.monotonic()
    made: AnyTrigger
    if known is None:
        state = entry.value.plant(Victim(classifier, rows, plan, run), chosen)
        made = ImageTrigger(entry.name, chosen, state, plan.mode, plan.target)
    else:
        made = plant_texts(classifier, split.train, known, plan, run)
    seconds = time.monotonic() - started
    probe = make_probe(made, classifier, split.held_out, held_out, seed)
    after = measure_classifier(classifier, held_out, probe) if held_out is not None else None
    if where:
        record = {
            "command": command or "detrojan.attack",
            "kind": "attack",
            "task": classifier.task,
            "architecture": _architecture(classifier),
            "model": classifier.source,
            "method": {"attack": entry.name, "paper": entry.paper},
            **made.to_json(),
            "behavior": made.mode,
            "options": plan,
            "samples": len(rows),
            "data": split.train.source,
            "measured_on": split.origin if held_out is not None else None,
            "seed": seed,
            "seconds": seconds,
            "inputs": manifest.hashes(classifier.files),
            "before": before,
            "after": after,
            "pictures": _pictures(made, held_out),
        }

        def save(directory: Path) -> None:
            save_classifier(classifier, directory)
            if isinstance(made, ImageTrigger):
                made.save(directory)

        output.write(where, save, record)
    return AttackResult(classifier.model, None, made, plan, seconds, before, after, where)


def evaluate(
    model: str | Path | nn.Module,
    *,
    data: Any = None,
    attack: str | Path | None = None,
    reference: str | Path | nn.Module | None = None,
    samples: int | None = None,
    head: str | None = None,
    architecture: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> ClassifierResult:
    """Measure a classifier on the test part of `data` (all of it where it has no parts), with or without an attack.

    `reference` is the model before the defense, for DER. Raises InputError for bad input.
    """
    classifier = _load(model, data, head, architecture, tokenizer, device)
    trigger = read_trigger(attack, classifier.task) if attack else None
    held_out, _ = read_samples(_required(data), classifier.task, classifier.names, split="test")
    held_out = _first(held_out, samples)
    rows = to_rows(classifier, held_out)
    earlier = None
    if reference is not None:
        other = _load(reference, data, head, architecture, tokenizer, device)
        theirs = to_rows(other, held_out)
        earlier = measure_classifier(
            other, theirs, make_probe(trigger, other, held_out, theirs, seed), batch_size=batch_size
        )
    probe = make_probe(trigger, classifier, held_out, rows, seed)
    progress("measuring", 1, 1)
    return measure_classifier(classifier, rows, probe, reference=earlier, batch_size=batch_size)


def scan(
    model: str | Path | nn.Module,
    *,
    data: Any = None,
    samples: int | None = None,
    seed: int = 0,
    preset: str | None = None,
    head: str | None = None,
    architecture: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    files_only: bool = False,
    device: str = "auto",
    progress: Progress = silent,
    **options: Any,
) -> ScanResult:
    """Look at the files of a classifier and, with clean samples, for a class that a backdoor draws.

    The second is step 2 of ULRL; `options` are ULRL's. Raises InputError for bad input.
    """
    chosen = registry.find("defense", "ulrl", "classifier").make_options(options, preset)
    files = scan_files(str(model)) if isinstance(model, (str, Path)) else ()
    if files_only or (data is None and isinstance(model, (str, Path))):
        return ScanResult(str(model), files)
    classifier = _load(model, data, head, architecture, tokenizer, device)
    split = split_samples(
        _required(data),
        classifier.task,
        classifier.names,
        samples=samples or max(ENOUGH, 6 * classifier.classes),
        held_out=False,
        seed=seed,
    )
    started = time.monotonic()
    rows = to_rows(classifier, split.train)
    found = locate(classifier, rows, chosen, Run(seed=seed, progress=progress))
    return ScanResult(
        classifier.source,
        files,
        classifier.names,
        found.measure,
        tuple(found.evidence.tolist()),
        tuple(found.scores.tolist()),
        found.suspicious,
        chosen.threshold,
        time.monotonic() - started,
        classifier.task,
    )


def read_trigger(source: str | Path, task: str) -> AnyTrigger:
    """Read the backdoor from the directory or manifest of `attack` on a classifier."""
    data = manifest.read(source)
    directory = Path(source) if Path(source).is_dir() else Path(source).parent
    if data.get("kind") != "attack" or data.get("task") != task:
        raise InputError(f"--attack {source}: its manifest describes no attack on a classifier of {task}s")
    return ImageTrigger.read(data, directory) if task == "image" else TextTrigger.from_json(data)


def _load(
    model: str | Path | nn.Module,
    data: Any,
    head: str | None,
    architecture: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str,
) -> Classifier:
    inputs: Any = data[0] if isinstance(data, (tuple, list)) and data else getattr(data, "inputs", None)
    images = torch.as_tensor(inputs)[:1] if hasattr(inputs, "shape") else None
    if isinstance(model, str) and model.startswith(NEW):
        raise InputError(f"{model}: only attack builds a new classifier; give one that is trained")
    return load_classifier(
        model, head=head, architecture=architecture, sample=images, tokenizer=tokenizer, device=device
    )


def _new(
    architecture: str, data: Any, samples: int | None, measure_effect: bool, seed: int, device: str
) -> tuple[Classifier, Any]:
    """Build an untrained classifier for the data."""
    task = input_of(NEW + architecture)
    split = split_samples(data, task, (), samples=samples, held_out=measure_effect, seed=seed)
    return new_from(architecture, split.train, seed=seed, device=device), split


def _required(data: Any) -> Any:
    if data is None:
        raise InputError(
            "a classifier needs --data: a few clean samples (a folder, IDX, .npz, a data set's name)"
        )
    return data


def _first(data: Labelled, samples: int | None) -> Labelled:
    from detrojan.data.stratified import sample, take

    return data if samples is None or samples >= len(data) else take(data, sample(data, samples, 0)[0])


def make_probe(
    trigger: AnyTrigger | None, classifier: Classifier, data: Labelled | None, rows: Rows | None, seed: int
) -> Probe | None:
    """Return a known trigger on held-out samples, `rows` of `data`; raises InputError where it does not fit them."""
    if trigger is None or data is None or rows is None:
        return None
    if trigger.target >= classifier.classes:
        raise InputError(
            f"the attack draws class {trigger.target}, the model has {classifier.classes} classes"
        )
    if isinstance(trigger, TextTrigger):
        return trigger.probe(classifier, data, seed)
    _in_pixels(rows)
    return trigger.probe(rows, classifier.classes)


def _in_pixels(rows: Rows) -> Tensor:
    """Return the images, which a trigger can be put on; raises InputError for those of a module of another range."""
    images = rows.inputs["pixel_values"]
    if images.dtype != torch.uint8 and not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            f"data: images from {images.min():.3g} to {images.max():.3g}; a trigger is put on pixels in 0 to 1, "
            "so give a module that takes these and normalises them itself"
        )
    return images


def _as_bytes(rows: Rows) -> Rows:
    """Return the images as the attacks take them, uint8."""
    return Rows({"pixel_values": to_bytes(to_float(_in_pixels(rows)))}, rows.labels)


def _architecture(classifier: Classifier) -> str | None:
    """Name the architecture where transformers alone cannot load it: one of our zoo, or a plain module."""
    model = classifier.model
    if isinstance(model, ZooForImageClassification):
        return str(model.config.architecture)
    return None if isinstance(model, PreTrainedModel) else "module"


def _pictures(trigger: AnyTrigger | None, rows: Rows | None) -> str | None:
    """Return the preview of an image trigger as an inline picture."""
    if rows is None or not isinstance(trigger, ImageTrigger):
        return None
    images = rows.inputs["pixel_values"][:6]
    return trigger_grid(images, trigger(images))


def sort_options(options: Mapping[str, Any], own: type | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the given options into those of the attack and those of the planting that all attacks share."""
    mine = {f.name for f in dataclasses.fields(own)} if own else set()
    shared = {f.name for f in dataclasses.fields(PlantOptions)} - {"target"}
    names = {k: k.replace("-", "_") for k in options}
    unknown = next((k for k, n in names.items() if n not in mine | shared), None)
    if unknown is not None:
        raise InputError(suggest(unknown, mine | shared, "option of attack:"))
    return (
        {k: v for k, v in options.items() if names[k] in mine},
        {k: v for k, v in options.items() if names[k] in shared},
    )


def class_number(target: int | str, classifier: Classifier, what: str = "--target") -> int:
    """Return the number of a class that was given by number or name; raises InputError for none of the model's."""
    text = str(target)
    number = (
        classifier.names.index(text) if text in classifier.names else int(text) if text.isdecimal() else -1
    )
    if not 0 <= number < classifier.classes:
        raise InputError(suggest(text, classifier.names, f"{what} of {classifier.source}:"))
    return number
