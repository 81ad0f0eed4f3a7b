"""Classifiers that are trained from nothing, `new:ARCHITECTURE`: built for the samples that are to train them."""

from __future__ import annotations

from torch import Tensor

from detrojan.errors import InputError
from detrojan.models.classifier import load_classifier
from detrojan.models.text_zoo import TEXT_ZOO, new_text_classifier
from detrojan.models.zoo import new_classifier
from detrojan.types import Classifier, Labelled


def new_from(architecture: str, data: Labelled, *, seed: int = 0, device: str = "auto") -> Classifier:
    """Build an untrained classifier for the classes and the images, or texts, of the data; raises InputError."""
    names = data.names or tuple(map(str, range(int(data.labels.max()) + 1)))
    if architecture in TEXT_ZOO:
        if not isinstance(data.inputs, list | tuple) or not all(isinstance(t, str) for t in data.inputs):
            raise InputError(f"{data.source}: holds images, but {architecture} is a text classifier")
        model, tokenizer = new_text_classifier(architecture, names, data.inputs, seed=seed)
        return load_classifier(model, tokenizer=tokenizer, device=device)
    if not isinstance(data.inputs, Tensor):
        raise InputError(f"{data.source}: a new classifier needs images of one size, as IDX or .npz")
    fresh = new_classifier(architecture, names, tuple(data.inputs.shape[1:]), seed=seed)
    return load_classifier(fresh, device=device)
