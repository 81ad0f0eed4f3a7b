"""What defenses that change the pixels of images share."""

from __future__ import annotations

from detrojan.errors import InputError
from detrojan.types import Classifier


def require_images(classifier: Classifier, name: str) -> None:
    """Raise InputError where a defense that changes pixels is asked to clean a classifier of texts."""
    if classifier.task != "image":
        raise InputError(
            f"{classifier.source}: takes texts, and {name} changes pixels; choose ft-sam, finetune or ulrl"
        )
