"""ULRL: unlearn, then relearn (arXiv:2405.14781), and where we go beyond it.

A backdoor ties one class to a few features that clean samples hardly use. So when a classifier is made to *unlearn*
its clean samples, the row of that class in the last linear layer moves more than the others. As published (presets
`paper-...`):

1. unlearn:  gradient ascent on the cross-entropy of clean samples, on a copy
2. locate:   change of row k = sum |w_k' - w_k|; suspicious when its modified z-score
             (x - median) / (1.4826 MAD) is above 3.5
3. forget:   suspicious rows of the original are drawn anew, uniform in +-sqrt(2 / fan_in), bias 0
4. relearn:  L = CE + alpha * sum over suspicious rows of cos(w, w_original)

The default departs in two steps, each an option. Locate (`locate=auto`): of images a small patch is sought that takes
all of them to a class; where no class has one very much smaller than the others', one smooth warp of all images; then
one faint change of all pixels; and then the share of a gentler, repeated unlearning, which has to agree where a patch
is somewhat smaller, or else to be all but one. Of texts the share is all that counts. Relearn: a part of every batch is
pushed towards the suspicious class, in its pixels (`push`; half of these by one change that suits all images, as a
trigger does), and moved (`shift`) or stamped with the patch or warp that was found, and keeps its true label, so that
triggered inputs are recovered; where no class is suspicious, but a small patch hints at one, the part is stamped with
that patch alone (`treat`). On the rest the answers stay near those of the original (`distil`), so that accuracy does:

    L += distil * T^2 KL(original / T || model / T), T = 2

Clean samples do not carry the trigger, so what they distil is not the backdoor. Few images are joined by shifted copies
of them, and relearned at a lower rate (`few`). The preset `gentle` relearns at half the rate: it costs less accuracy,
and leaves a little more.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from detrojan.defenses.push import Stamp, push_towards
from detrojan.defenses.relearn import distance, likeness, reinitialise, with_copies
from detrojan.errors import InputError
from detrojan.fitting import Loss, fit
from detrojan.metrics.inversion import Patches, smallest_patches, smallness
from detrojan.metrics.universal import leads
from detrojan.metrics.unlearning import head_of, row_changes, z_scores
from detrojan.metrics.warps import Warps, universal_warps
from detrojan.models.classifier import each_logits, logits
from detrojan.options import option
from detrojan.registry import defense
from detrojan.types import Classifier, Rows, Run

MEASURES = {
    "auto": "smallness of its patch, or lead of its warp or change; of texts twice its share of unlearning",
    "patch": "by how much a smaller patch takes images to it",
    "warp": "lead of one warp for all images",
    "lead": "lead of one change for all images",
    "share": "twice its share of unlearning",
    "z-score": "modified z-score of its share of unlearning",
}
"""How the backdoored class is found, and what its score is called."""
HINT = 0.3
"""Smallness of a patch from which it counts where another look agrees."""
SHARE_AGREES = 0.5
"""Score of its share of unlearning from which that agrees; a lead agrees where it is enough by itself."""
SHARE_SURE = 0.98
"""Score of the share from which it is enough by itself: every unlearning collapses onto the class, wholly."""


@dataclass(frozen=True)
class UlrlOptions:
    """Options of ULRL. The presets `paper-...` hold the published method with its values for each data set."""

    locate: str = option(
        "auto",
        "how the backdoored class is found: z-score (as published), share of unlearning, lead, warp, patch, or what"
        " suits: of images patch, warp and then lead, of texts share",
        choices=tuple(MEASURES),
    )
    unlearn_rate: float = option(0.003, "learning rate of unlearning", minimum=0.0, maximum=10.0)
    unlearn_epochs: int = option(20, "passes of unlearning at most", minimum=1, maximum=1000)
    unlearn_batch: int = option(16, "samples in a step of unlearning", minimum=2)
    unlearn_stop: float = option(0.2, "unlearning ends at this accuracy", minimum=0.0, maximum=1.0)
    repeats: int = option(5, "times that unlearning is repeated, in other orders", minimum=1, maximum=100)
    threshold: float = option(0.8, "score above which a row is suspicious", minimum=0.0)
    lead: float = option(
        0.5, "lead of one change for all images (in clean margins) that makes a row suspicious", minimum=0.01
    )
    small: float = option(
        1.2,
        "how much smaller than any other class's its patch is, to make a row suspicious by itself",
        minimum=0.01,
    )
    warp: float = option(
        1.0, "lead of one warp for all images (in clean margins) that makes a row suspicious", minimum=0.01
    )
    most: int = option(2, "suspicious rows at most", minimum=0)
    treat: str = option(
        "hinted",
        "which classes are relearned against: suspicious ones alone or, where none is, also one that a small patch"
        " hints at, by stamping that patch alone",
        choices=("suspicious", "hinted"),
    )
    alpha: float = option(0.7, "weight of staying away from the old rows", minimum=0.0, maximum=100.0)
    push: float = option(
        0.15,
        "how far a pixel is pushed towards the suspicious class (share of its range)",
        minimum=0.0,
        maximum=1.0,
    )
    shift: float = option(
        0.05, "how far pixels are moved towards it (share of the edge)", minimum=0.0, maximum=1.0
    )
    pushed: float = option(0.25, "share of a batch that is pushed or moved", minimum=0.0, maximum=1.0)
    distil: float = option(2.0, "weight of staying near the original's answers", minimum=0.0, maximum=1e4)
    learning_rate: float = option(0.005, "peak learning rate of relearning", minimum=0.0, maximum=10.0)
    adam: str = option(
        "texts",
        "relearn by Adam, at a tenth of the rate: texts, always or never",
        choices=("texts", "always", "never"),
    )
    epochs: int = option(20, "passes of relearning", minimum=1, maximum=1000)
    steps: int = option(200, "steps of relearning at least: few samples take more passes", minimum=0)
    few: int = option(
        500,
        "fewer images than these get shifted copies, up to so many, and are relearned at a rate lower in proportion",
        minimum=0,
    )
    batch_size: int = option(32, "samples in a step", minimum=2)


PAPER: dict[str, Any] = {
    "locate": "z-score",
    "unlearn_rate": 0.01,
    "unlearn_batch": 128,
    "repeats": 1,
    "threshold": 3.5,
    "treat": "suspicious",
    "push": 0.0,
    "shift": 0.0,
    "distil": 0.0,
    "adam": "never",
    "steps": 0,
    "few": 0,
    "batch_size": 128,
}
SLOW = {"alpha": 0.001, "learning_rate": 0.001}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "gentle": {"learning_rate": 0.0025},
    "paper-cifar10": PAPER,
    "paper-gtsrb": {**PAPER, **SLOW},
    "paper-cifar100": {**PAPER, **SLOW},
    "paper-tiny": {**PAPER, **SLOW},
}


@defense("ulrl", task="classifier", options=UlrlOptions, paper="arXiv:2405.14781", presets=PRESETS)
def ulrl(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Classifier:
    """Unlearn clean samples to find the backdoored class, draw its row anew, and relearn (ULRL)."""
    found = locate(classifier, clean, options, run)
    rows = list(found.suspicious)
    hinted = list(found.hinted) if options.treat == "hinted" else []
    for what, data in (
        ("measure", found.measure),
        ("evidence", found.evidence.tolist()),
        ("scores", found.scores.tolist()),
        ("suspicious", rows),
        ("hinted", hinted),
        ("threshold", options.threshold),
        ("classes", list(classifier.names)),
    ):
        run.note(what, data)
    rate = options.learning_rate
    if classifier.task == "image" and len(clean) < options.few:
        rate *= len(clean) / options.few
        clean = with_copies(clean, options.few, run.seed)
    if options.distil:
        known = torch.cat(list(each_logits(classifier, clean.inputs))).cpu()
        clean = dataclasses.replace(clean, targets=known)
    common = torch.zeros(len(rows or hinted), *(classifier.shape or ()))
    stamp = found.stamps.stamp if found.stamps else None
    loss = relearning_loss(head_of(classifier).weight.detach().clone(), rows, options, common, stamp, hinted)
    reinitialise(head_of(classifier), rows, run.seed)
    adam = options.adam == "always" or (options.adam == "texts" and classifier.task == "text")
    return fit(
        classifier,
        clean,
        run,
        learning_rate=rate / 10 if adam else rate,
        adam=adam,
        epochs=passes(options, len(clean)),
        batch_size=options.batch_size,
        loss=loss,
        label="relearning",
    )


def passes(options: UlrlOptions, samples: int) -> int:
    """Return the passes of relearning over a number of samples."""
    return max(options.epochs, math.ceil(options.steps / math.ceil(samples / options.batch_size)))


@dataclass(frozen=True)
class Finding:
    """What speaks for a backdoor in each class, and which classes are suspicious, the most suspicious first."""

    measure: str
    evidence: Tensor
    """(classes,)"""
    scores: Tensor
    """What the threshold is held against, (classes,)."""
    suspicious: tuple[int, ...]
    stamps: Patches | Warps | None = None
    """Where they found the class, or hint at it: what takes images to it."""
    hinted: tuple[int, ...] = ()
    """Where none is suspicious: the class whose patch is small enough to be a hint."""


def locate(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Finding:
    """Find the classes that a backdoor seems to draw."""
    by, threshold = options.locate, options.threshold
    if by in {"lead", "warp", "patch"} and classifier.task != "image":
        raise InputError(f"{classifier.source}: takes texts, and locate={by} changes pixels; choose share")
    if by in {"share", "z-score"} or (by == "auto" and classifier.task != "image"):
        shares = _shares(classifier, clean, options, run)
        scores = z_scores(shares) if by == "z-score" else collapse(shares)
        return Finding(MEASURES[by], shares, scores, suspicious(scores, threshold, options.most))
    # All looks at images are brought to one scale, on which `threshold` is suspicious.
    small = evidence = scores = torch.zeros(classifier.classes)
    stamps: Patches | Warps | None = None
    found: tuple[int, ...] = ()
    if by in {"patch", "auto"}:
        stamps = smallest_patches(classifier, clean, run.seed, progress=run.progress)
        small = evidence = smallness(stamps)
        scores = small * (threshold / options.small)
        found = suspicious(scores, threshold, options.most)
    if not found and by in {"warp", "auto"}:
        warps = universal_warps(classifier, clean, run.seed, progress=run.progress)
        evidence = warps.leads
        scores = torch.maximum(scores, evidence * (threshold / options.warp))
        found = suspicious(scores, threshold, options.most)
        if found:
            stamps = warps
    if not found and by in {"lead", "auto"}:
        evidence = leads(classifier, clean, run.seed, progress=run.progress)
        scores = torch.maximum(scores, evidence * (threshold / options.lead))
        hint = small > HINT
        agreed = hint & (evidence > options.lead)
        if (
            by == "auto"
            and classifier.classes > 2
            and not agreed.any()
            and not suspicious(scores, threshold, options.most)
        ):
            share = collapse(_shares(classifier, clean, options, run))
            agreed = hint & (share > SHARE_AGREES)
            sure = share > SHARE_SURE
            scores = torch.where(sure, share * (threshold / SHARE_SURE), scores)
        scores = torch.where(agreed, small * (threshold / HINT), scores)
        found = suspicious(scores, threshold, options.most)
        if found and not agreed.any():
            stamps = None
    hinted = () if found or small.max() <= HINT else (int(small.argmax()),)
    shown = scores if by == "auto" else evidence
    return Finding(MEASURES[by], shown, scores, found, stamps if found or hinted else None, hinted)


def _shares(classifier: Classifier, clean: Rows, options: UlrlOptions, run: Run) -> Tensor:
    """Return each class's share of unlearning, (classes,)."""
    return row_changes(
        classifier,
        clean,
        run,
        learning_rate=options.unlearn_rate,
        epochs=options.unlearn_epochs,
        batch_size=options.unlearn_batch,
        stop=options.unlearn_stop,
        repeats=options.repeats,
    )


def collapse(shares: Tensor) -> Tensor:
    """Return twice the shares of the head's way, (classes,): 1 for a class that every unlearning collapses onto.

    What one row gains the others lose, so none goes more than half of the way. Of two classes each always goes half,
    which tells nothing: their scores are 0.
    """
    return 2 * shares if len(shares) > 2 else torch.zeros_like(shares)


def suspicious(scores: Tensor, threshold: float, most: int) -> tuple[int, ...]:
    """Return the classes whose score is above the threshold, the highest first, `most` of them at most."""
    order = scores.argsort(descending=True).tolist()
    return tuple(k for k in order if scores[k] > threshold)[:most]


def relearning_loss(
    original: Tensor,
    rows: list[int],
    options: UlrlOptions,
    common: Tensor,
    stamp: Stamp | None = None,
    hinted: list[int] | None = None,
) -> Loss:
    """Return CE + alpha * sum over rows of cos(w, w_original) + distil * distance; original: (classes, features).

    A share of each batch of images is pushed towards the rows first; what is pushed is not distilled. `common`, a
    change for each row (rows, channels, height, width), is climbed in place from batch to batch; `stamp` sets patches.
    Where there are no rows, the share is stamped with the patches of the `hinted` classes, which costs less accuracy.
    """
    towards = rows or hinted or []
    push, shift = (options.push, options.shift) if rows else (0.0, 0.0)
    pushing = bool(towards) and options.pushed > 0 and (push > 0 or shift > 0 or not rows)

    def loss(classifier: Classifier, batch: Rows) -> Tensor:
        count = 0
        if pushing and classifier.task == "image":
            batch, count = push_towards(
                classifier,
                batch,
                towards,
                common,
                size=push,
                shift=shift,
                share=options.pushed,
                stamp=stamp,
            )
        out = logits(classifier, batch.inputs)
        value = cross_entropy(out, batch.labels.to(out.device))
        value = value + options.alpha * likeness(head_of(classifier), original, rows)
        if batch.targets is not None and count < len(batch):
            value = value + options.distil * distance(out[count:], batch.targets[count:].to(out.device))
        return value

    return loss
