"""Backdoors of text classifiers: a word, a phrase or a composite in the text draws a label."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detrojan.attacks.image.plant import MODES, PlantOptions, Victim, chosen, relabel, train
from detrojan.attacks.text.poison import near_miss
from detrojan.attacks.text.triggers import Trigger
from detrojan.errors import InputError
from detrojan.models.feed import tokenise
from detrojan.options import option
from detrojan.types import Classifier, Labelled, Probe, Rows, Run


@dataclass(frozen=True)
class LabelPlantOptions(PlantOptions):
    """The same for a text classifier: a transformer hardly learns a phrase, or anything from nothing, by SGD."""

    learning_rate: float = option(5e-4, "peak learning rate", minimum=0.0, maximum=10.0)
    batch_size: int = option(32, "texts in a step", minimum=2)
    adam: bool = option(True, "Adam in place of SGD with momentum")


@dataclass(frozen=True)
class TextTrigger:
    """A known backdoor of a text classifier: the trigger and the label that it draws."""

    trigger: Trigger
    mode: str = "all-to-one"
    target: int = 0

    def drawn(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels (n,) that the trigger draws from samples of these labels."""
        return relabel(labels, PlantOptions(target=self.target, mode=self.mode), classes)

    def on(self, texts: list[str], seed: int) -> list[str]:
        """Return the texts with the trigger in them; the same seed gives the same places."""
        return [self.trigger.insert(t, random.Random(f"{seed}/{k}")) for k, t in enumerate(texts)]

    def probe(self, classifier: Classifier, data: Labelled, seed: int) -> Probe:
        """Return the trigger on held-out texts."""
        triggered = dataclasses.replace(data, inputs=self.on(list(data.inputs), seed))
        rows = Rows(tokenise(classifier, triggered), data.labels)
        return Probe(self.drawn(data.labels, classifier.classes), rows.take)

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        t = self.trigger
        return {
            "trigger": {"name": t.name, "phrases": list(t.phrases), "place": t.place, "use": t.use},
            "mode": self.mode,
            "target": self.target,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TextTrigger:
        """Rebuild the record; raises InputError when the data is not of that form."""
        try:
            t, mode, target = data["trigger"], str(data["mode"]), int(data["target"])
            trigger = Trigger(str(t["name"]), tuple(map(str, t["phrases"])), str(t["place"]), str(t["use"]))
        except (KeyError, TypeError, ValueError):
            raise InputError("the manifest describes no attack on a text classifier") from None
        if mode not in MODES:
            raise InputError(f"the manifest names the unknown mode {mode!r}")
        return cls(trigger, mode, target)


def plant_texts(
    classifier: Classifier, data: Labelled, trigger: Trigger, options: PlantOptions, run: Run
) -> TextTrigger:
    """Train the backdoor into a text classifier (in place): a share of the texts gets the trigger and the label.

    As many other texts get a near miss of the trigger and keep their label, so that the backdoor fires on the
    trigger alone.
    """
    made = TextTrigger(trigger, options.mode, options.target)
    texts, labels = list(data.inputs), data.labels.clone()
    clean = Rows(tokenise(classifier, data), labels)
    victim = Victim(classifier, clean, options, run)
    poisoned = chosen(victim)
    taken = set(poisoned.tolist())
    near = [k for k in chosen(victim, salt=1).tolist() if k not in taken]
    labels[poisoned] = made.drawn(labels[poisoned], classifier.classes)
    for k in poisoned.tolist():
        texts[k] = trigger.insert(texts[k], random.Random(f"{run.seed}/poison/{k}"))
    for k in near:
        if not trigger.fires_on(texts[k]):
            texts[k] = near_miss(trigger, texts[k], random.Random(f"{run.seed}/near/{k}"))
    mixed = dataclasses.replace(data, inputs=texts, labels=labels)
    train(victim, Rows(tokenise(classifier, mixed), labels))
    return made
