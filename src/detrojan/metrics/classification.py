"""What a classifier does on clean samples, and on the same samples with a trigger."""

from __future__ import annotations

import torch
from torch import Tensor

from detrojan.metrics.stats import wilson
from detrojan.models.classifier import predict
from detrojan.types import Classifier, ClassifierResult, Probe, Rows

PART = 500


def measure_classifier(
    classifier: Classifier,
    clean: Rows,
    probe: Probe | None = None,
    *,
    reference: ClassifierResult | None = None,
    batch_size: int = 256,
) -> ClassifierResult:
    """Measure accuracy on clean samples and, with a trigger, attack success and recovery accuracy.

    Samples that carry the drawn label already are left out of both: they prove nothing. ASR = triggered samples
    predicted as the drawn label, recovery accuracy = the same samples predicted as their own. With `reference`, what
    was measured before the defense: DER = (max(0, fall of ASR) - max(0, fall of accuracy) + 1) / 2.
    """
    labels = clean.labels
    predicted = predict(classifier, clean.inputs, batch_size)
    right = int((predicted == labels).sum())
    accuracy, n = right / len(labels), len(labels)
    result = ClassifierResult(
        classifier.source,
        accuracy,
        wilson(right, n),
        n,
        classes=classifier.names,
        per_class=_per_class(predicted, labels, classifier.classes),
    )
    if probe is not None:
        result = result.replace(**_attack(classifier, clean, probe, batch_size))
    if reference is not None:
        result = result.replace(reference=reference.model, der=der(reference, result))
    return result


def der(before: ClassifierResult, after: ClassifierResult) -> float | None:
    """Return the defense effectiveness rating, 0 to 1; None when no attack was measured."""
    if before.asr is None or after.asr is None:
        return None
    fall, lost = before.asr - after.asr, before.accuracy - after.accuracy
    return (max(0.0, fall) - max(0.0, lost) + 1) / 2


def _attack(classifier: Classifier, clean: Rows, probe: Probe, batch_size: int) -> dict[str, object]:
    wanted = probe.drawn
    counted = (wanted != clean.labels).nonzero().flatten()
    hits = recovered = 0
    for part in counted.split(PART) if len(counted) else ():
        rows = probe.triggered(part)
        predicted = predict(classifier, rows.inputs, batch_size)
        hits += int((predicted == wanted[part]).sum())
        recovered += int((predicted == clean.labels[part]).sum())
    n = len(counted)
    return {
        "n_triggered": n,
        "asr": hits / n if n else None,
        "asr_interval": wilson(hits, n),
        "recovery_accuracy": recovered / n if n else None,
        "recovery_interval": wilson(recovered, n),
    }


def _per_class(predicted: Tensor, labels: Tensor, classes: int) -> tuple[float | None, ...]:
    """Return the accuracy of each class; None for a class without samples."""
    total = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    return tuple(int(r) / int(t) if t else None for r, t in zip(right, total, strict=True))
