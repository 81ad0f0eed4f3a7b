"""Libraries that talk: their log lines are dropped, and what they print does not mix with results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def hushed(library: str) -> Iterator[None]:
    """Drop a library's log lines while open, and send what is printed to standard error."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
