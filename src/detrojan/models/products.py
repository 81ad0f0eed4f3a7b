"""Matrix products as fast as the machine has them: their factors may be rounded, sums and weights stay in float32.

On a CPU, torch then hands them to oneDNN, which rounds where rounded factors are what the CPU multiplies fastest. Where
it does not, it may still be faster: on a core with AVX-512 and no AMX it rounded nothing and took half of MKL's time.
Attention over short rows is quicker there by plain products than fused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

FAST = {"cpu": "medium", "cuda": "high"}
"""By device: factors of bfloat16 are allowed on a CPU, of TF32 on a GPU; elsewhere nothing changes."""
SHORT = 256
"""Tokens of rows that a CPU attends over by plain products. Eight such rows keep some 4 GB in a model of 7B."""


@contextlib.contextmanager
def short_attention(device: torch.device, longest: int) -> Iterator[None]:
    """While open, attend by plain products where a CPU's rows have at most SHORT tokens.

    The fused kernel saves the memory of longer rows. At 80 tokens it took four times as long, from 300 on no longer.
    """
    if device.type != "cpu" or longest > SHORT:
        yield
        return
    with sdpa_kernel([SDPBackend.MATH]):
        yield


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
