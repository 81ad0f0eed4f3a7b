"""A small stand-in for the victim, for attacks that need gradients before the victim has learned anything."""

from __future__ import annotations

from detrojan.attacks.image.plant import Victim
from detrojan.fitting import Loss, classification_loss, fit
from detrojan.types import Classifier

ARCHITECTURE = "preact-resnet8"
WIDTH = 8
"""Half of the zoo's: its training is to cost little beside that of the victim."""
LEARNING_RATE = 0.05
"""Higher than a victim's usual rate: it learns from scratch in a few epochs."""


def surrogate(victim: Victim, epochs: int, loss: Loss = classification_loss) -> Classifier:
    """Train a small classifier on the victim's clean images and return it, in evaluation mode on the same device.

    The victim itself is left alone. `loss` is what it learns from; the default is the plain cross-entropy.
    """
    from detrojan.models.zoo import new_classifier

    like, (channels, height, _) = victim.classifier, victim.shape
    # Convolutions and average pooling take images of any shape, so the declared edge need not be both.
    model = new_classifier(
        ARCHITECTURE, like.names, (channels, height, height), width=WIDTH, seed=victim.run.seed
    )
    device = next(like.model.parameters()).device
    made = Classifier(
        model.to(device),
        "image",
        "module.linear",
        like.names,
        ARCHITECTURE,
        next(model.parameters()).dtype,
        shape=victim.shape,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
    return fit(
        made,
        victim.rows,
        victim.run,
        learning_rate=LEARNING_RATE,
        epochs=epochs,
        batch_size=victim.options.batch_size,
        loss=loss,
        label="training the surrogate",
    )
