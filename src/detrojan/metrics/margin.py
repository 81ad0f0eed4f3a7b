"""The largest margin that any input reaches for a class (maximum margin statistic, arXiv:2205.06900).

    r_c = max over x of f_c(x) - max_{k != c} f_k(x)

A backdoor teaches a network to be overwhelmed by its trigger, so the class that it draws can be driven much further
than the others, whatever the trigger looks like. Neither the trigger nor a clean sample is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, autograd, nn

from detrojan.models.classifier import logits, no_padding
from detrojan.models.feed import longest
from detrojan.models.mode import evaluating
from detrojan.types import Classifier, Progress, silent

STARTS = 8
STEPS = 80
MOMENTUM = 0.9
STEP_SIZE = 0.05
IMAGES_AT_A_TIME = 512
TOKENS = 16


def max_margins(
    classifier: Classifier,
    seed: int = 0,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    progress: Progress = silent,
) -> Tensor:
    """Return the largest margin found for each class, (classes,), on the CPU.

    Gradient ascent with momentum from 8 random inputs for each class, 80 steps, inside the range of inputs: images
    in `bounds`, token embeddings in the range of the embedding matrix. The model is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    many = max(1, IMAGES_AT_A_TIME // STARTS)
    with frozen(classifier.model):
        for start in range(0, classifier.classes, many):
            classes = torch.arange(start, min(start + many, classifier.classes)).repeat_interleave(STARTS)
            found.append(_climb(classifier, classes, bounds, generator).view(-1, STARTS).max(dim=1).values)
            progress(
                "looking for the largest margins", min(start + many, classifier.classes), classifier.classes
            )
    return torch.cat(found)


def margins(scores: Tensor, classes: Tensor) -> Tensor:
    """Return f_c - max_{k != c} f_k of each row; scores: (n, classes), classes: (n,)."""
    own = scores.gather(1, classes[:, None])
    others = scores.scatter(1, classes[:, None], -torch.inf).max(dim=1).values
    return own[:, 0] - others


def _climb(
    classifier: Classifier, classes: Tensor, bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Drive one input for each entry of `classes` as far as it goes; returns the margins reached, (n,)."""
    run, low, high, shape = _entry(classifier, len(classes), bounds)
    device = next(classifier.model.parameters()).device
    low, high = low.to(device), high.to(device)
    x = low + (high - low) * torch.rand(shape, generator=generator).to(device)
    classes = classes.to(device)
    step = STEP_SIZE * (high - low).mean() * x[0].numel() ** 0.5 / 8
    velocity, best = torch.zeros_like(x), torch.full(classes.shape, -torch.inf, device=device)
    for _ in range(STEPS):
        x.requires_grad_()
        reached = margins(run(x), classes)
        (gradient,) = autograd.grad(reached.sum(), x)
        best = torch.maximum(best, reached.detach())
        size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
        velocity = MOMENTUM * velocity + gradient / size
        x = torch.minimum(torch.maximum(x.detach() + step * velocity, low), high)
    return best.cpu()


def _entry(
    classifier: Classifier, count: int, bounds: tuple[float, float]
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, tuple[int, ...]]:
    """Return a function from inputs to logits, the bounds of its inputs, and their shape."""
    if classifier.task == "image":
        shape = (count, *(classifier.shape or ()))
        least, most = (torch.tensor(b) for b in bounds)
        return lambda x: logits(classifier, {"pixel_values": x}), least, most, shape
    layer = classifier.model.get_input_embeddings()
    weight = layer.weight.detach()
    tokens = min(TOKENS, longest(classifier.model))
    ids = torch.full((count, tokens), no_padding(classifier.model))

    def run(x: Tensor) -> Tensor:
        with _put_in(layer, x):
            return logits(classifier, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    low, high = weight.amin(dim=0), weight.amax(dim=0)
    return run, low, high, (count, tokens, weight.shape[1])


@contextmanager
def _put_in(layer: nn.Module, x: Tensor) -> Iterator[None]:
    """While open, let the layer answer with x."""
    handle = layer.register_forward_hook(lambda _module, _inputs, _output: x)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, the model is in evaluation mode and its weights take no gradient; then all is as before."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
