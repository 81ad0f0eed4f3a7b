"""For libraries that draw from the global random generators: one seed, one result, and no trace of it afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and torch while open; put them, and torch's determinism, back after."""
    import numpy as np
    import torch

    ours, numpys = random.getstate(), np.random.get_state()
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
