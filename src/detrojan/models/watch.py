"""Hidden states, as they pass through the modules of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def states_of(output: Any) -> Tensor:
    """Return the states (rows, tokens, hidden) of what a module returns: a tensor, or one with others behind it."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """Return what a module returned, with other states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


@contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """While open, keep what each of the modules returns: a list for each, with the states of every pass."""
    seen: list[list[Tensor]] = [[] for _ in modules]
    with ExitStack() as stack:
        for mine, module in zip(seen, modules, strict=True):

            def hook(_module: nn.Module, _args: Any, output: Any, mine: list[Tensor] = mine) -> None:
                mine.append(states_of(output))

            stack.callback(module.register_forward_hook(hook).remove)
        yield seen
