"""Find the classification head: the last linear layer, whose rows are the classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detrojan.errors import InputError


def find_head(model: nn.Module, run: Callable[[], Tensor], name: str | None = None) -> str:
    """Return the dotted name of the linear layer that writes the logits.

    `run` feeds the model one sample and returns its logits (1, classes). The head is the layer whose output *is*
    the logits; where none is (they are pooled, or averaged over several), the only one with a row for each class.
    `name` overrules the search. Raises InputError when there is no such layer, or more than one.
    """
    linears = {k: m for k, m in model.named_modules() if isinstance(m, nn.Linear)}
    if name is not None:
        if name not in linears:
            known = ", ".join(list(linears)[-4:]) or "none"
            raise InputError(f"--head {name}: no linear layer of that name; the last ones are {known}")
        return name
    outputs: dict[str, Tensor] = {}

    def watch(key: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: outputs.__setitem__(key, output)

    handles = [m.register_forward_hook(watch(k)) for k, m in linears.items()]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = run()
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    exact = [k for k, out in outputs.items() if out.shape == logits.shape and torch.equal(out, logits)]
    found = exact or [k for k in outputs if linears[k].out_features == logits.shape[-1]]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError("no linear layer writes the logits of this model; name one with --head")
    raise InputError(
        f"several layers could be the classification head; choose one: --head {' or '.join(found)}"
    )
