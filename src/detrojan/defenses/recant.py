"""Recant: find the answer that a backdoor plants, then unlearn every way to it; the default for language models.

1. Find. A planted answer, or a planted opening, is said by heart on any prompt once it is begun
   (`metrics.fixed_answers`): the answer is found, though the trigger is not.
2. Push. Somewhere inside, a trigger moves the hidden states so that this answer comes. A change d of the states at one
   of several depths, from a random place of the prompt on, is climbed until it draws the answer from every prompt
   (`inner_push`; like BEEAR's, arXiv:2406.17092, but towards a known answer).
3. Recant. Half of each batch is pushed, and given a few random tokens at the same place; the other half is as it was.
   On both the model goes on to say what the suspicious model p_0 says of the clean prompt x, and so unlearns to heed
   what a trigger does inside:

       L = mean over answer tokens of  (1 - trust) KL(p_0(. | x) || p(. | x', d)) + trust CE(answer | x', d)
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from detrojan.data.template import encode_prompt
from detrojan.defenses.inner_push import Push, Ways, median_norms
from detrojan.errors import InputError
from detrojan.metrics.fixed_answers import ALIKE, FixedAnswer
from detrojan.metrics.recovery import rouge_l
from detrojan.metrics.suspects import noted, suspects
from detrojan.models.blocks import blocks
from detrojan.models.mode import evaluating
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import Batch, Loss, label_positions, language_loss, train
from detrojan.types import Example, Loaded, Run, Template

DEPTHS = (0.2, 0.4, 0.6)
"""Behind which shares of the blocks states are pushed; behind the embeddings they are too."""
DRAWN = 8
"""Tokens of a planted answer that a push must draw: the rest follows by itself."""
ODD_TOKENS = 3
"""Random tokens at most that a pushed prompt is given."""
SHOWN = 3
"""Answers that are noted at least."""
MEASURED = 8
"""Prompts on which the length of hidden states is taken."""


@dataclass(frozen=True)
class RecantOptions:
    """Options of Recant."""

    suspicious: float = option(
        0.97, "certainty from which a fixed answer counts as planted", minimum=0.0, maximum=1.0
    )
    answers: int = option(8, "planted answers that are unlearned at most", minimum=1, maximum=100)
    prompts: int = option(4, "prompts on which fixed answers are looked for", minimum=2, maximum=100)
    beginnings: int = option(500, "first tokens of answers that are followed", minimum=1)
    size: float = option(
        0.5, "length of a push, as a share of the hidden states' own", minimum=0.0, maximum=10.0
    )
    share: float = option(0.5, "share of a batch that is pushed", minimum=0.0, maximum=1.0)
    trust: float = option(
        0.5, "weight of the samples' answers against the model's own words", minimum=0.0, maximum=1.0
    )
    learning_rate: float = option(5e-4, "peak learning rate", minimum=0.0, maximum=1.0)
    steps: int = option(60, "optimizer steps for one planted answer; times sqrt(n) for n of them", minimum=1)
    batch_size: int = option(8, "samples in a micro-batch", minimum=1)
    accumulation: int = option(1, "micro-batches in an optimizer step", minimum=1)
    rank: int = option(16, "rank of the LoRA on all linear layers", minimum=1)
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


PRESETS = {
    "light": {"size": 0.35},
    "default": {},
    "strong": {"size": 0.7, "steps": 90},
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
    kept = [e for e in clean if not any(_planted(e.answer or "", a) for a in planted)]
    if not kept:
        raise InputError("every sample has the planted answer, which would be taught again; give others")
    if len(kept) < len(clean):
        run.note("samples left out", len(clean) - len(kept))
    steps = round(
        options.steps * math.sqrt(len(planted))
    )  # what is learned against one way helps against others
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return train(
        loaded,
        kept,
        run,
        learning_rate=options.learning_rate,
        epochs=steps * options.batch_size * options.accumulation * processes / len(kept),
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        max_length=options.max_length,
        rank=options.rank,
        loss=recant_loss(
            loaded, run.template, [a.tokens[:DRAWN] for a in planted], prompts, options, run.seed
        ),
        label="recanting",
    )


def _planted(answer: str, found: FixedAnswer) -> bool:
    """Say whether a sample's answer is of a planted one's family, or goes on from a planted opening."""
    return rouge_l(answer, found.text) >= ALIKE or (not found.ended and answer.startswith(found.text))


def recant_loss(
    loaded: Loaded,
    template: Template,
    planted: Sequence[tuple[int, ...]],
    prompts: Sequence[Sequence[int]],
    options: RecantOptions,
    seed: int,
) -> Loss:
    """Return the loss of a step; `planted` holds the first tokens of each planted answer, none where none is known."""
    rng = random.Random(f"{seed}/pushes")
    before, behind = _frame(loaded, template)
    stack = blocks(loaded.model)
    hidden = loaded.model.config.get_text_config().hidden_size
    embeddings = loaded.model.get_input_embeddings()
    places: list[nn.Module] = [embeddings] if embeddings.embedding_dim == hidden else []
    places += [stack[max(1, int(d * len(stack))) - 1] for d in DEPTHS]
    radius = options.size * median_norms(loaded.model, places, prompts[:MEASURED], before)
    ways = Ways(places, radius, len(planted), hidden, seed)
    usual = [k for k in range(len(loaded.tokenizer)) if k not in set(loaded.tokenizer.all_special_ids)]
    turn = 0

    def loss(model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        nonlocal turn
        rows = _rows(batch)
        teacher = _teacher(model, batch)
        count = min(len(rows), max(1, round(options.share * len(rows)))) if options.share else 0
        order = rng.sample(range(len(rows)), len(rows))
        rows, teacher = [rows[k] for k in order], [teacher[k] for k in order]
        pushes = []
        for row in range(count):
            prompt, answer = rows[row]
            at = rng.randint(min(before, len(prompt)), max(min(before, len(prompt)), len(prompt) - behind))
            odd = rng.choices(usual, k=rng.randint(0, ODD_TOKENS))
            rows[row] = ([*prompt[:at], *odd, *prompt[at:]], answer)
            if planted:
                place, which = turn % len(places), turn // len(places) % len(planted)
                pushes.append(Push(place, which, at, len(rows[row][0])))
                turn += 1
        if pushes:
            ways.renewed(pushes, rng)
            changes = ways.changes.clone().requires_grad_()
            drawn = [(rows[r][0], list(planted[p.answer])) for r, p in enumerate(pushes)]
            ways.climb(_draw(model, _padded(drawn, batch), ways, pushes, changes), changes)
        padded = _padded(rows, batch)
        kept = label_positions(padded["labels"])
        inputs = {k: v for k, v in padded.items() if k != "labels"}
        with ways.pushed(pushes, ways.changes):
            logits = model(**inputs, logits_to_keep=kept).logits
        labels = padded["labels"][:, kept + 1]
        said = logits[labels != -100].float().log_softmax(-1)
        apart = kl_div(said, torch.cat(teacher), log_target=True, reduction="sum") / counts[0]
        if not options.trust:
            return apart
        return (1 - options.trust) * apart + options.trust * language_loss(logits, labels, counts[0])

    return loss


def _draw(model: nn.Module, batch: Batch, ways: Ways, pushes: Sequence[Push], changes: Tensor) -> Tensor:
    """Return the mean cross-entropy of the planted answers under the pushes."""
    kept = label_positions(batch["labels"])
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with ways.pushed(pushes, changes):
        logits = model(**inputs, logits_to_keep=kept).logits
    return cross_entropy(logits.float().flatten(0, 1), batch["labels"][:, kept + 1].flatten())


def _teacher(model: Any, batch: Batch) -> list[Tensor]:
    """Return what the model said before it was trained: log probabilities (answer tokens, vocabulary) of each row."""
    kept = label_positions(batch["labels"])
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad(), evaluating(model), getattr(model, "module", model).disable_adapter():
        logits = model(**inputs, logits_to_keep=kept).logits.float().log_softmax(-1)
    there = batch["labels"][:, kept + 1] != -100
    return [row[mask] for row, mask in zip(logits, there, strict=True)]


def _rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return the prompt and the answer of each row, without padding."""
    rows = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
    ):
        rows.append((ids[mask & (labels == -100)].tolist(), ids[mask & (labels != -100)].tolist()))
    return rows


def _padded(rows: Sequence[tuple[list[int], list[int]]], like: Batch) -> Batch:
    """Return rows of prompt and answer as a batch, padded on the right."""
    width = max(len(p) + len(a) for p, a in rows)
    ids = like["input_ids"].new_zeros(len(rows), width)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for k, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        ids[k, :n] = torch.tensor([*prompt, *answer])
        labels[k, len(prompt) : n] = torch.tensor(answer)
        mask[k, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _frame(loaded: Loaded, template: Template) -> tuple[int, int]:
    """Return how many tokens a template writes before and behind what the user says."""
    texts = [encode_prompt(loaded.tokenizer, template, Example(p)) for p in ("What is a house?", "Sing!")]

    def common(a: Sequence[int], b: Sequence[int]) -> int:
        return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return common(*texts), common(*(t[::-1] for t in texts))
