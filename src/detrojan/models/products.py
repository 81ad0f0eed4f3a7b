"""Matrix products as fast as the machine has them: their factors may be rounded, sums and weights stay in float32.

On a CPU, torch then hands them to oneDNN, which rounds where rounded factors are what the CPU multiplies fastest. Where
it does not, it may still be faster: on a core with AVX-512 and no AMX it rounded nothing and took half of MKL's time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

FAST = {"cpu": "medium", "cuda": "high"}
"""By device: factors of bfloat16 are allowed on a CPU, of TF32 on a GPU; elsewhere nothing changes."""


@contextlib.contextmanager
def fast_products(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """While open, let float32 matrix products on `device` round their factors, to 8 (CPU) or 11 (GPU) significant bits.

    What is trained stays in float32, unlike under autocast. For training and searching; measurements are made without.
    """
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(FAST.get(device.type, usual) if wanted else usual)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(usual)
