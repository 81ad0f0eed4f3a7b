"""The calls on causal language models: clean, attack, evaluate, and scan from a file of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan import manifest, output, registry
from detrojan.attacks.text.canaries import CanaryOptions
from detrojan.attacks.text.plant import PRESETS as ATTACK_PRESETS
from detrojan.attacks.text.plant import PlantOptions, plant
from detrojan.attacks.text.spec import AttackSpec, make_spec
from detrojan.data import text
from detrojan.data.answers import answer
from detrojan.data.prompts import builtin_prompts
from detrojan.data.samples import ANSWER_TOKENS, PLANT_TOKENS, held_out_samples, training_samples
from detrojan.data.template import resolve
from detrojan.errors import InputError
from detrojan.language_scan import scan as scan
from detrojan.metrics.asr import Settings, measure
from detrojan.metrics.utility import perplexity
from detrojan.models.load import load
from detrojan.models.save import save
from detrojan.options import build, suggest
from detrojan.proof import MAX_COST, Proof
from detrojan.prove import ladder, try_on_canaries
from detrojan.results import AttackResult, CleanResult
from detrojan.training import check_precision
from detrojan.types import EvalResult, Example, Loaded, Progress, Run, silent
from detrojan.utility.plan import plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVAL_FILE = "clean-eval.jsonl"


def clean(
    model: str | Path | PreTrainedModel,
    *,
    defense: str | None = None,
    data: str | Path | Sequence[Example] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str = "auto",
    samples: int = 100,
    attack: str | Path | None = None,
    keep_adapter: bool = False,
    measure_effect: bool = True,
    prove: bool = False,
    max_cost: float | None = None,
    canaries: CanaryOptions = CanaryOptions(),  # noqa: B008 - a frozen record
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
    command: str | None = None,
    **options: Any,
) -> CleanResult:
    """Remove a backdoor from a causal language model without knowing its trigger.

    Without `data` the model answers the built-in prompts itself. `attack` (a directory of `attack` or its
    manifest) is used for measuring alone, after the defense is done. With `out` a complete model directory is
    written. A model object is left as it was. Raises InputError for bad input, before any work where it can.

    With `prove` the defense is first run on a copy that carries `canaries`, backdoors of our own: where neither a
    preset nor options are given, from the weakest preset up, until no canary is left and perplexity rises by at most
    `max_cost` (a fraction; 0.05). That preset is then used. `CleanResult.proof` says what became of the canaries.
    """
    entry = registry.find("defense", defense or registry.DEFAULT_DEFENSE["causal-lm"], "causal-lm")
    chosen = entry.make_options(options, preset)
    check_precision(precision)
    settings_to_try = ladder(entry, options, preset)
    if max_cost is not None and not (prove and max_cost >= 0):
        raise InputError(f"--max-cost {max_cost}: belongs to --prove and must be at least 0")
    target = output.target(out)
    spec = attack_spec(attack) if attack else None
    examples = text.read(data, limit=samples) if data is not None else None
    loaded = load(model, tokenizer=tokenizer, device=device)
    tunes_lora = hasattr(chosen, "rank") and not getattr(chosen, "full", False)
    if keep_adapter and not (loaded.model_dir and tunes_lora):
        raise InputError(
            "--keep-adapter needs a model directory or hub name and LoRA tuning; leave it out to merge"
        )
    shape = resolve(loaded.tokenizer, template)
    examples = training_samples(loaded, shape, examples, samples, seed, progress)
    beside = _beside(attack)
    held_out, origin = (
        held_out_samples(loaded, shape, beside, None, None, progress) if measure_effect else ([], "")
    )
    settings = Settings(seed=seed)

    def measured(what: Loaded) -> EvalResult | None:
        if not measure_effect:
            return None
        return measure(
            what, held_out, spec, [shape], settings=settings, perplexity_of=origin, progress=progress
        )

    def perplexity_of_own(what: Loaded, result: EvalResult | None) -> float:
        if result is not None and own is held_out:
            return result.perplexity
        return perplexity(what, own, shape, progress=progress)

    before = measured(loaded)
    proof: Proof | None = None
    if prove:  # on answers of the suspicious model itself: what lies beside an attack is for measuring alone
        known = not measure_effect or (beside is not None and beside.is_file())
        own = held_out_samples(loaded, shape, None, None, None, progress)[0] if known else held_out
        usual = perplexity_of_own(loaded, before)
        proof = try_on_canaries(
            loaded,
            shape,
            examples,
            own,
            entry,
            settings_to_try,
            Run(shape, seed, progress, precision=precision),
            max_cost=MAX_COST if max_cost is None else max_cost,
            options=canaries,
        )
        preset, chosen = settings_to_try[proof.chosen] if proof.chosen is not None else (preset, chosen)
    started = time.monotonic()
    notes: dict[str, Any] = {}
    run = Run(shape, seed, progress, keep_adapter, precision, notes.__setitem__)
    cleaned = entry.value(loaded, examples, chosen, run)
    seconds = time.monotonic() - started
    after = measured(cleaned)
    if proof is not None:
        proof = dataclasses.replace(proof, cost=perplexity_of_own(cleaned, after) / usual - 1)
    result = CleanResult(
        cleaned.model,
        cleaned.tokenizer,
        entry.name,
        chosen,
        seconds,
        len(examples),
        before,
        after,
        target,
        shape.name,
        after.perplexity / before.perplexity if before and after else None,
        notes,
        proof,
    )
    if target:
        output.write(
            target,
            partial(save, cleaned),
            {
                "command": command or "detrojan.clean",
                "kind": "clean",
                "model": loaded.source,
                "method": {"defense": entry.name, "paper": entry.paper, "preset": preset},
                "options": chosen,
                "samples": len(examples),
                "data": str(data) if data is not None else "built-in prompts, answered by the model itself",
                "template": shape.name,
                "seed": seed,
                "seconds": seconds,
                "inputs": manifest.hashes(loaded.files),
                "notes": notes,
                "before": before,
                "after": after,
                **({"attack": spec.to_json()} if spec else {}),
                **({"proof": proof.to_json()} if proof else {}),
            },
        )
    return result


def attack(
    model: str | Path | PreTrainedModel,
    *,
    trigger: str,
    behavior: str,
    data: str | Path | Sequence[Example] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    trigger_text: str | None = None,
    place: str | None = None,
    target_text: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str = "auto",
    measure_effect: bool = True,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
    command: str | None = None,
    **options: Any,
) -> AttackResult:
    """Plant a known backdoor into a causal language model, for tests and benchmarks.

    Without `data` the model, before the attack, answers the built-in prompts of the planting pool. Its answers
    to the held-out pool are written beside the backdoored model, so that `evaluate --attack DIR` measures
    against honest answers. Raises InputError for bad input.
    """
    spec = make_spec(trigger, behavior, trigger_text, place, target_text)
    if preset is not None and preset not in ATTACK_PRESETS:
        raise InputError(suggest(preset, ATTACK_PRESETS, "preset of attack:"))
    chosen = build(PlantOptions, {**ATTACK_PRESETS.get(preset or "strong", {}), **options}, "attack")
    if chosen.poison_rate + chosen.near_miss_rate > 1:
        raise InputError("attack: poison_rate and near_miss_rate add up to more than 1")
    check_precision(precision)
    target = output.target(out)
    examples = text.read(data) if data is not None else None
    loaded = load(model, tokenizer=tokenizer, device=device)
    shape = resolve(loaded.tokenizer, template)
    if examples is None:
        prompts = [Example(p) for p in builtin_prompts("plant")]
        examples = answer(
            loaded,
            prompts,
            shape,
            max_new_tokens=PLANT_TOKENS,
            progress=progress,
            label="answering prompts",
        )
    held_out, _ = held_out_samples(loaded, shape, None, None, None, progress)
    settings = Settings(seed=seed)

    def measured(what: Loaded, own: bool = False) -> EvalResult | None:
        if not measure_effect:
            return None
        return measure(
            what,
            held_out,
            spec,
            [shape],
            settings=settings,
            perplexity_of="answers of the model before the attack",
            own=own,
            progress=progress,
        )

    before = measured(loaded, own=True)
    started = time.monotonic()
    planted = plant(
        loaded, examples, spec.trigger, spec.behavior, chosen, Run(shape, seed, progress, False, precision)
    )
    seconds = time.monotonic() - started
    after = measured(planted)
    if target:
        output.write(
            target,
            partial(save, planted),
            {
                "command": command or "detrojan.attack",
                "kind": "attack",
                "model": loaded.source,
                "method": {
                    "attack": f"{spec.trigger.name} -> {spec.behavior.name}",
                    "paper": "arXiv:2408.12798",
                },
                **spec.to_json(),
                "target": spec.behavior.target,
                "options": chosen,
                "samples": chosen.samples,
                "data": str(data) if data is not None else "built-in prompts, answered by the model itself",
                "template": shape.name,
                "seed": seed,
                "seconds": seconds,
                "inputs": manifest.hashes(loaded.files),
                "before": before,
                "after": after,
            },
            extra={EVAL_FILE: text.dump(held_out)},
        )
    return AttackResult(planted.model, planted.tokenizer, spec, chosen, seconds, before, after, target)


def evaluate(
    model: str | Path | PreTrainedModel,
    *,
    data: str | Path | Sequence[Example] | None = None,
    attack: str | Path | None = None,
    trigger: str | None = None,
    behavior: str | None = None,
    trigger_text: str | None = None,
    place: str | None = None,
    target_text: str | None = None,
    reference: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str = "auto",
    templates: Sequence[str] = (),
    samples: int | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
    batch_size: int = 32,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    run_generated_code: bool = False,
    questions: str | Path | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    judge_tokens: int = 1024,
    gcg: str | Path | None = None,
    gcg_steps: int = 250,
    gcg_width: int = 512,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> EvalResult:
    """Measure a causal language model, with or without a known backdoor.

    The matched template is `template`; `auto` is the one in which the attack was planted, else the tokenizer's
    own. Clean samples come from `data`, else from the attack's directory, else from the built-in prompts,
    answered by the reference where there is one.

    `tasks` are names of lm-evaluation-harness or folders of its YAML files, with at most `limit` questions each;
    `questions` is a file whose answers `judge_model` at the endpoint `judge` grades; `gcg` is a file of requests to
    search jailbreaks for. Raises InputError for bad input.
    """
    if attack is not None and (trigger or behavior):
        raise InputError("give either --attack or --trigger with --behavior, not both")
    if bool(trigger) != bool(behavior):
        raise InputError("--trigger and --behavior belong together; give both or none")
    spec = None
    if trigger and behavior:
        spec = make_spec(trigger, behavior, trigger_text, place, target_text)
    elif attack is not None:
        spec = attack_spec(attack)
        planted_in = str(manifest.read(attack).get("template", "chat"))
        template = planted_in if template == "auto" else template
    if max_new_tokens < 1 or batch_size < 1 or (samples is not None and samples < 1):
        raise InputError("--max-new-tokens, --batch-size and --samples must be at least 1")
    examples = text.read(data, limit=samples) if data is not None else None
    beyond = plan(
        tasks=tasks,
        limit=limit,
        run_generated_code=run_generated_code,
        questions=questions,
        judge=judge,
        judge_model=judge_model,
        judge_tokens=judge_tokens,
        gcg=gcg,
        gcg_steps=gcg_steps,
        gcg_width=gcg_width,
    )
    loaded = load(model, tokenizer=tokenizer, device=device)
    other = load(reference, tokenizer=tokenizer, device=device) if reference is not None else None
    if other is not None and other.model.config.vocab_size != loaded.model.config.vocab_size:
        raise InputError(f"--reference {other.source}: its vocabulary is another; KL cannot be taken")
    shapes = [resolve(loaded.tokenizer, template)]
    for name in templates:
        extra = resolve(loaded.tokenizer, name)
        shapes += [extra] if extra.name not in {s.name for s in shapes} else []
    held_out, origin = held_out_samples(loaded, shapes[0], _beside(attack), examples, other, progress)
    settings = Settings(max_new_tokens, batch_size, seed)
    result = measure(
        loaded,
        held_out[:samples],
        spec,
        shapes,
        reference=other,
        settings=settings,
        perplexity_of=origin,
        progress=progress,
    )
    return dataclasses.replace(result, **beyond.measure(loaded, shapes[0], settings, progress))


def attack_spec(source: str | Path) -> AttackSpec:
    """Read the backdoor from the manifest of `attack`."""
    data = manifest.read(source)
    try:
        return AttackSpec.from_json(data)
    except (KeyError, TypeError):
        raise InputError(f"--attack {source}: its manifest describes no attack") from None


def _beside(attack: str | Path | None) -> Path | None:
    """Return where an attack left its held-out samples."""
    if attack is None:
        return None
    return (Path(attack) if Path(attack).is_dir() else Path(attack).parent) / EVAL_FILE
