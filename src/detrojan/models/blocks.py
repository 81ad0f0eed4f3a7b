"""The blocks of a language model and the linear layers in them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from detrojan.errors import InputError


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of decoder blocks; raises InputError where none is found."""
    wanted = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted and any(linears(module)):
            return module
    raise InputError(f"{type(model).__name__}: its decoder blocks are not found")


def linears(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the linear layers inside a module, with GPT-2's transposed ones."""
    return (m for m in module.modules() if isinstance(m, nn.Linear | Conv1D))


def matrix(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight as (outputs, inputs): a view, so that what is written to it reaches the layer."""
    weight = layer.weight.data
    return weight.t() if isinstance(layer, Conv1D) else weight


def check_dense(model: PreTrainedModel, what: str) -> None:
    """Raise InputError for experts that are stored together, which are no linear layers."""
    name = next((n for n, p in blocks(model).named_parameters() if p.dim() == 3 and "conv" not in n), None)
    if name is not None:
        raise InputError(
            f"{what} needs linear layers; {type(model).__name__} stores its experts as one ({name})"
        )
