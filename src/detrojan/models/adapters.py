"""Two LoRAs, one trained after the other, as one adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def joined(first: Any, second: Any, name: str = "default") -> Any:
    """Return `first` (in place) as one adapter that changes the weights as `first` and then `second` do.

    Their ranks stand side by side, s being the scale of `first`:

        W + s B_1 A_1 + t B_2 A_2  =  W + s [B_1, t/s B_2] [A_1; A_2]

    Both are PEFT models with a LoRA on the same modules; for stacked experts this holds of each.
    """
    others = dict(second.named_modules())
    for path, mine in first.named_modules():
        if name in getattr(mine, "lora_A", {}):
            _join(mine, others[path], name)
    config, more = first.peft_config[name], second.peft_config[name]
    grown = 1 + more.r / config.r  # of ranks and alphas alike, so that the scale stays
    config.r, config.lora_alpha = config.r + more.r, config.lora_alpha * grown
    config.rank_pattern = {where: round(rank * grown) for where, rank in config.rank_pattern.items()}
    config.alpha_pattern = {where: alpha * grown for where, alpha in config.alpha_pattern.items()}
    return first


def _join(mine: Any, other: Any, name: str) -> None:
    experts = getattr(mine, "num_experts", 1)
    down, up = mine.lora_A[name], mine.lora_B[name]
    more, again = other.lora_A[name].weight, other.lora_B[name].weight
    again = again * (other.scaling[name] / mine.scaling[name])
    # Of stacked experts: A is (experts * rank, in), B is (out, rank * experts).
    a = torch.cat([w.reshape(experts, -1, w.shape[-1]) for w in (down.weight, more)], dim=1)
    b = torch.cat([w.reshape(len(w), -1, experts) for w in (up.weight, again)], dim=1)
    mine.lora_A[name], mine.lora_B[name] = (
        _linear(down, a.reshape(-1, a.shape[-1])),
        _linear(up, b.reshape(len(b), -1)),
    )
    mine.r[name] += other.r[name]


def _linear(like: nn.Linear, weight: torch.Tensor) -> nn.Linear:
    out, into = weight.shape
    made = nn.Linear(into, out, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
    return made.requires_grad_(like.weight.requires_grad)
