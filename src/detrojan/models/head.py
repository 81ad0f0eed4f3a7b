"""Find the classification head: the last linear layer, whose rows are the classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detrojan.errors import InputError
from detrojan.models.mode import evaluating


def find_head(model: nn.Module, run: Callable[[], Tensor], name: str | None = None) -> str:
    """Return the dotted name of the linear layer that writes the logits.

    `run` feeds the model one sample and returns its logits (1, classes). The head is the layer whose output *holds*
    the logits (at one of its tokens, where they are pooled); where none does (they are averaged over several), the
    only one with a row for each class. `name` overrules the search. Raises InputError when there is no such layer,
    or more than one.
    """
    linears = {k: m for k, m in model.named_modules() if isinstance(m, nn.Linear)}
    if name is not None and name not in linears:
        known = ", ".join(list(linears)[-4:]) or "none"
        raise InputError(f"--head {name}: no linear layer of that name; the last ones are {known}")
    outputs: dict[str, Tensor] = {}

    def watch(key: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: outputs.__setitem__(key, output.detach())

    handles = [m.register_forward_hook(watch(k)) for k, m in linears.items()]
    try:
        with evaluating(model), torch.no_grad():
            logits = run()
    finally:
        for handle in handles:
            handle.remove()
    classes = logits.shape[-1]
    if name is not None:
        if linears[name].out_features != classes:
            rows = linears[name].out_features
            raise InputError(f"--head {name}: has {rows} rows, but the model tells {classes} classes apart")
        return name
    found = [k for k, out in outputs.items() if _holds(out, logits)]
    found = found or [k for k in outputs if linears[k].out_features == classes]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError("no linear layer writes the logits of this model; name one with --head")
    raise InputError(
        f"several layers could be the classification head; choose one: --head {' or '.join(found)}"
    )


def _holds(output: Tensor, logits: Tensor) -> bool:
    """Say whether one of the rows of a layer's output is that of the logits (1, classes)."""
    if output.shape[-1] != logits.shape[-1]:
        return False
    rows = output.reshape(-1, output.shape[-1]).to(logits)
    return bool((rows == logits[0]).all(dim=-1).any())
