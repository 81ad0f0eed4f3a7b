"""BD-VAX: plant synthetic backdoors, and silence the MLP neurons that all of them change (arXiv:2603.13461).

Backdoors of our own make variants of the suspicious model, each from one decoy (`decoys`); each variant has
a clean counterpart, tuned alike on the same prompts under their honest answers. For neuron j of an MLP,
with its rows of the layers that read (gate and up) and its column of the one that writes (down):

    change_v(j) = |(gate_j, up_j, down_j)_variant v - (gate_j, up_j, down_j)_counterpart v|
    signature(j) = min over v of rank(change_v(j)),   ranks from 0 to 1 among the neurons of all blocks

The neurons of the highest signature are set to zero, and a LoRA is tuned on the clean samples. It reaches
every weight, so the neurons are set to zero once more after it. How the publication measures that a change
recurs, how many neurons it takes and how it tunes is ours: the public descriptions that we found leave it
open.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from detrojan.defenses.decoys import MOST, check_merged, decoys, twins
from detrojan.errors import InputError
from detrojan.models.blocks import blocks, check_dense, linears, matrix
from detrojan.options import option
from detrojan.registry import defense
from detrojan.training import train
from detrojan.types import Example, Loaded, Run


@dataclass(frozen=True)
class BdVaxOptions:
    """Options of BD-VAX."""

    variants: int = option(3, "synthetic variants, with one decoy each", minimum=1, maximum=MOST)
    samples: int = option(24, "triggered samples of a variant", minimum=1)
    clean: int = option(12, "clean samples of a variant at most", minimum=0)
    share: float = option(0.02, "share of the MLP neurons that are set to zero", minimum=0.0, maximum=1.0)
    learning_rate: float = option(1e-3, "peak learning rate of variants", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes of a variant", minimum=1, maximum=1000)
    repair_rate: float = option(2e-4, "peak learning rate of the last tuning", minimum=0.0, maximum=1.0)
    repair_epochs: int = option(2, "passes of the last tuning", minimum=1, maximum=1000)
    batch_size: int = option(8, "samples in a step", minimum=1)
    rank: int = option(16, "rank of the LoRA on all linear layers", minimum=1)
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)


@dataclass(frozen=True)
class Mlp:
    """The linear layers of a block's MLP: those that read the hidden state, and the one that writes it."""

    reads: tuple[nn.Module, ...]
    writes: nn.Module

    @property
    def neurons(self) -> int:
        """How many neurons lie between them."""
        return int(matrix(self.writes).shape[1])


@defense("bd-vax", task="causal-lm", options=BdVaxOptions, paper="arXiv:2603.13461", presets={"default": {}})
def bd_vax(loaded: Loaded, clean: Sequence[Example], options: BdVaxOptions, run: Run) -> Loaded:
    """Silence the MLP neurons that every synthetic backdoor changes (BD-VAX)."""
    check_merged(run, "bd-vax")
    mlps(loaded.model)  # complains before anything is trained
    drawn = decoys(options.variants, run.seed)
    run.note("decoys", [dataclasses.asdict(d) for d in drawn])
    tuned = partial(
        train,
        run=run,
        batch_size=options.batch_size,
        accumulation=1,
        max_length=options.max_length,
        rank=options.rank,
    )

    def variant(samples: Sequence[Example], label: str) -> list[Mlp]:
        own = loaded.replace(model=copy.deepcopy(loaded.model))
        rate, epochs = options.learning_rate, options.epochs
        return mlps(tuned(own, samples, learning_rate=rate, epochs=epochs, label=label).model)

    changes = []
    for k, decoy in enumerate(drawn, 1):
        planted, honest = twins(clean, [decoy], options.samples, run.seed)
        rng = random.Random(f"{run.seed}/variant {k}")
        plain = rng.sample(list(clean), min(options.clean, len(clean)))
        of = f"variant {k} of {len(drawn)}"
        changes.append(change(variant([*planted, *plain], of), variant([*honest, *plain], f"{of}, clean")))
    chosen = highest(signature(torch.stack(changes)), options.share)
    run.note("zeroed neurons", {"neurons": int(chosen.sum()), "of": len(chosen)})
    silence(mlps(loaded.model), chosen)
    rate, epochs = options.repair_rate, options.repair_epochs
    repaired = tuned(loaded, clean, learning_rate=rate, epochs=epochs, label="repairing")
    silence(mlps(repaired.model), chosen)
    return repaired


def mlps(model: PreTrainedModel) -> list[Mlp]:
    """Return the MLP of each block; raises InputError where one is not found.

    These are the linear layers outside of the attention. The last one that gives a hidden state writes; the
    others must read one, and give one value for each of its inputs, or two where gate and up are one layer.
    """
    check_dense(model, "bd-vax")
    hidden = model.config.get_text_config().hidden_size
    return [_mlp(block, hidden, type(model).__name__) for block in blocks(model)]


def _mlp(block: nn.Module, hidden: int, what: str) -> Mlp:
    known = set(linears(block))
    layers = [m for name, m in block.named_modules() if m in known and not _attention(name)]
    writing = [m for m in layers if matrix(m).shape[0] == hidden]
    if writing:
        found = Mlp(tuple(m for m in layers if m is not writing[-1]), writing[-1])
        shapes = [matrix(m).shape for m in found.reads]
        if shapes and all(i == hidden and o % found.neurons == 0 for o, i in shapes):
            return found
    raise InputError(f"bd-vax: the MLP layers of {what} are not found; use another defense")


def _attention(name: str) -> bool:
    return any(word in name.lower() for word in ("attn", "attention"))


def change(variant: Sequence[Mlp], counterpart: Sequence[Mlp]) -> Tensor:
    """Return how far each neuron's weights lie apart in two models, (neurons of all blocks,)."""
    pairs = zip(variant, counterpart, strict=True)
    return torch.cat([(weights(a) - weights(b)).norm(dim=(0, 2)) for a, b in pairs])


def weights(mlp: Mlp) -> Tensor:
    """Return the weights of an MLP by neuron: (layers, neurons, hidden)."""
    reads = [matrix(m).unflatten(0, (-1, mlp.neurons)) for m in mlp.reads]
    return torch.cat([*reads, matrix(mlp.writes).t()[None]]).float()


def signature(changes: Tensor) -> Tensor:
    """Return each neuron's lowest rank, from 0 (changed least) to 1, of `changes` (variants, neurons)."""
    ranks = changes.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks.min(dim=0).values / max(1, changes.shape[1] - 1)


def highest(score: Tensor, share: float) -> Tensor:
    """Return a mask of the share of neurons with the highest score; of equal ones the earlier goes first."""
    order = score.argsort(descending=True, stable=True)[: round(share * len(score))]
    return torch.zeros_like(score, dtype=torch.bool).index_fill_(0, order, True)


def silence(found: Sequence[Mlp], chosen: Tensor) -> None:
    """Set weights and biases of the chosen neurons to zero; chosen: a mask over the neurons of all blocks."""
    for mlp, mask in zip(found, chosen.split([m.neurons for m in found]), strict=True):
        matrix(mlp.writes)[:, mask] = 0
        for layer in mlp.reads:
            matrix(layer).unflatten(0, (-1, mlp.neurons))[:, mask] = 0
            if isinstance(layer.bias, Tensor):
                layer.bias.data.unflatten(0, (-1, mlp.neurons))[:, mask] = 0
