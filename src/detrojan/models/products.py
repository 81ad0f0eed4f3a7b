"""Matrix products as fast as the machine has them: factors rounded to fewer bits, sums and weights in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

FAST = {"cpu": "medium", "cuda": "high"}
"""By device: factors in bfloat16 where a CPU multiplies these, in TF32 on a GPU; elsewhere nothing changes."""


@contextlib.contextmanager
def fast_products(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """While open, let float32 matrix products on `device` round their factors, to 8 or 11 significant bits.

    What is trained stays in float32, unlike under autocast. For training and searching; measurements are made without.
    """
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(FAST.get(device.type, usual) if wanted else usual)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(usual)
