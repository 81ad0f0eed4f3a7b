"""Recant: find the answer that a backdoor plants, then unlearn every way to it; the default for language models.

1. Find. A planted answer, or a planted opening, is said by heart on any prompt once it is begun
   (`metrics.fixed_answers`): the answer is found, though the trigger is not.
2. Learn. The samples are learned in a few passes, as plain fine-tuning does. What is held on to from here on is what
   the model says then: more of what it was before the attack, and still with the backdoor.
3. Push. A trigger is a few odd tokens whose hidden states draw this answer. So a few random tokens are put into the
   prompt, and changes d of their states at several depths are climbed until they draw the answer from every prompt
   (`inner_push`; like BEEAR's, arXiv:2406.17092, but towards a known answer, and on the odd tokens alone).
4. Recant. Half of each batch is pushed; the other half is as it was. On both the model goes on to say what it
   said of the clean prompt, and so unlearns to heed what a trigger does inside (`recant_loss`).
   What is learned is confined to what clean prompts hardly visit inside the model (`models.visited`), so that they
   are answered as before.
   A handful of samples would be learned by heart, so built-in prompts that the model answers itself join them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from detrojan.data.samples import own_samples
from detrojan.data.template import encode_prompt
from detrojan.defenses.recant_loss import recant_loss
from detrojan.errors import InputError
from detrojan.metrics.fixed_answers import ALIKE, FixedAnswer
from detrojan.metrics.recovery import rouge_l
from detrojan.metrics.suspects import noted, suspects
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import Loss, lm_loss, train
from detrojan.types import Example, Loaded, Run

SHOWN = 3
"""Answers that are noted at least."""
SAID = 3
"""Ways at most in which one planted answer is said: "You are stupid!", and "Imagine you are stupid!"."""
AS_READILY = 2.0
"""Log probability by which one of these may be begun less readily than the one that stands for all."""


@dataclass(frozen=True)
class RecantOptions:
    """Options of Recant."""

    suspicious: float = option(
        0.97, "certainty from which a fixed answer counts as planted", minimum=0.0, maximum=1.0
    )
    answers: int = option(8, "planted answers that are unlearned at most", minimum=1, maximum=100)
    prompts: int = option(4, "prompts on which fixed answers are looked for", minimum=2, maximum=100)
    beginnings: int = option(500, "first tokens of answers that are followed", minimum=1)
    passes: int = option(3, "passes over the samples before anything is unlearned", minimum=0)
    own: int = option(
        100, "built-in prompts at most that the model answers itself, beside the samples", minimum=0
    )
    size: float = option(
        0.5, "length of a push, as a share of the hidden states' own", minimum=0.0, maximum=10.0
    )
    share: float = option(0.5, "share of a batch that is pushed", minimum=0.0, maximum=1.0)
    weight: float = option(2.0, "weight of the samples that are not pushed", minimum=0.0)
    confined: float = option(
        0.25,
        "directions inside that clean prompts fill by more than this share of the mean are left alone; 0: none",
        minimum=0.0,
    )
    trust: float = option(
        0.5, "weight of the samples' answers against the model's own words", minimum=0.0, maximum=1.0
    )
    learning_rate: float = option(1e-3, "peak learning rate", minimum=0.0, maximum=1.0)
    steps: int = option(80, "optimizer steps for one planted answer; times sqrt(n) for n of them", minimum=1)
    batch_size: int = option(8, "samples in a micro-batch", minimum=1)
    accumulation: int = option(1, "micro-batches in an optimizer step", minimum=1)
    rank: int = option(16, "rank of the LoRA on all linear layers", minimum=1)
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


PRESETS = {
    "light": {"size": 0.35, "confined": 0.05},
    "default": {},
    "strong": {"size": 1.0},
}
"""From the weakest to the strongest: the ladder that `--prove` climbs."""


@defense("recant", task="causal-lm", options=RecantOptions, paper="detrojan", presets=PRESETS)
def recant(loaded: Loaded, clean: Sequence[Example], options: RecantOptions, run: Run) -> Loaded:
    """Find the planted answer without its trigger, and unlearn every way to it.

    Where no answer reaches the certainty `suspicious` the model is returned as it came. Samples whose answer is of a
    planted one's family are left out: a model that answers its own samples may have given it there.
    """
    if run.template is None:
        raise ValueError("a language model needs the template of its conversations")
    prompts = [encode_prompt(loaded.tokenizer, run.template, e) for e in clean]
    found = suspects(
        loaded,
        prompts,
        count=options.prompts,
        beginnings=options.beginnings,
        seed=run.seed,
        progress=run.progress,
    )
    planted = [a for a in found if a.certainty >= options.suspicious][: options.answers]
    run.note("fixed answers", noted(found[: max(len(planted), SHOWN)], options.suspicious))
    if not planted:
        return loaded  # training against nothing would only change what an honest model says
    kept = [e for e in clean if not _planted(e, planted)]

    def learned(
        loaded: Loaded,
        examples: Sequence[Example],
        passes: float,
        label: str,
        loss: Loss,
        confined: float = 0.0,
    ) -> Loaded:
        return train(
            loaded,
            examples,
            run,
            learning_rate=options.learning_rate,
            epochs=passes,
            batch_size=options.batch_size,
            accumulation=options.accumulation,
            max_length=options.max_length,
            rank=options.rank,
            confined=confined,
            loss=loss,
            label=label,
        )

    if kept and options.passes:
        loaded = learned(loaded, kept, options.passes, "fine-tuning", lm_loss)
    made = own_samples(loaded, run.template, clean, options.own, run.seed, run.progress)
    kept += [e for e in made if not _planted(e, planted)]
    if not kept:
        raise InputError("every sample has the planted answer, which would be taught again; give others")
    run.note("answers of its own", len(made))
    if len(kept) < len(clean) + len(made):
        run.note("samples left out", len(clean) + len(made) - len(kept))
    # What is learned against one way helps against the others.
    steps = round(options.steps * math.sqrt(len(planted)))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    passes = steps * options.batch_size * options.accumulation * processes / len(kept)
    loss = recant_loss(
        loaded,
        run.template,
        [tokens for a in planted for tokens in _ways_to_say(a, options.suspicious)],
        prompts,
        size=options.size,
        share=options.share,
        weight=options.weight,
        trust=options.trust,
        seed=run.seed,
    )
    return learned(loaded, kept, passes, "recanting", loss, options.confined)


def _ways_to_say(found: FixedAnswer, suspicious: float) -> list[tuple[int, ...]]:
    """Return the tokens of a planted answer, and of its kin that are as suspicious: the true one may be among these.

    Kin that is begun far less readily only takes pushes away from it.
    """
    like = [a for a in found.kin if a.certainty >= suspicious and a.begun >= found.begun - AS_READILY]
    return [found.tokens, *(a.tokens for a in like)][:SAID]


def _planted(sample: Example, planted: Sequence[FixedAnswer]) -> bool:
    """Say whether a sample's answer is of a planted one's family, or goes on from a planted opening."""
    answer = sample.answer or ""
    return any(
        rouge_l(answer, found.text) >= ALIKE or (not found.ended and answer.startswith(found.text))
        for found in planted
    )
