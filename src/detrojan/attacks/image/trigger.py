"""A planted image trigger as a record that can be put on images, written down and read again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detrojan import registry
from detrojan.attacks.image.plant import MODES, PlantOptions, State, relabel, to_float
from detrojan.errors import InputError, first_line
from detrojan.types import Probe, Rows, plain

STATE_FILE = "trigger.safetensors"


@dataclass(frozen=True)
class ImageTrigger:
    """A known backdoor of an image classifier: the attack, its options, what it learned, and what it draws."""

    name: str
    options: Any
    state: State
    mode: str = "all-to-one"
    target: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Put the trigger on images (n, channels, height, width), uint8 or floats in 0..1; returns floats in 0..1.

        Raises InputError when what the attack learned is missing or does not fit these images.
        """
        attack = registry.find("trigger", self.name, "image").value
        try:
            return attack.apply(to_float(images), self.options, self.state)
        except (KeyError, RuntimeError) as error:  # a state from a file may hold anything
            raise InputError(
                f"trigger {self.name}: its {STATE_FILE} is missing or does not fit ({first_line(error)})"
            ) from None

    def drawn(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels (n,) that the trigger draws from samples of these labels."""
        return relabel(labels, PlantOptions(target=self.target, mode=self.mode), classes)

    def probe(self, clean: Rows, classes: int) -> Probe:
        """Return the trigger on held-out images, put on when they are asked for."""
        images, labels = clean.inputs["pixel_values"], clean.labels

        def triggered(index: Tensor) -> Rows:
            return Rows({"pixel_values": self(images[index])}, labels[index])

        return Probe(self.drawn(labels, classes), triggered)

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds; the state lies beside it in `trigger.safetensors`."""
        return {
            "trigger": {"name": self.name, "options": plain(self.options)},
            "mode": self.mode,
            "target": self.target,
        }

    def save(self, directory: Path) -> None:
        """Write the state, where there is one, as safetensors."""
        from safetensors.torch import save_file

        if self.state:
            save_file({k: v.contiguous().cpu() for k, v in self.state.items()}, directory / STATE_FILE)

    @classmethod
    def read(cls, manifest: dict[str, Any], directory: Path) -> ImageTrigger:
        """Rebuild a trigger from the manifest of an attack and its directory; raises InputError."""
        from safetensors.torch import load_file

        try:
            name, given = str(manifest["trigger"]["name"]), dict(manifest["trigger"]["options"])
            mode, target = str(manifest["mode"]), int(manifest["target"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{directory}: its manifest describes no attack on an image classifier"
            ) from None
        if mode not in MODES:
            raise InputError(f"{directory}: unknown mode {mode!r} in its manifest")
        entry = registry.find("trigger", name, "image")
        options = entry.make_options(given)
        state: State = {}
        if (directory / STATE_FILE).is_file():
            try:
                state = load_file(directory / STATE_FILE)
            except Exception as error:
                raise InputError(f"{directory / STATE_FILE}: cannot be read ({first_line(error)})") from None
        return cls(entry.name, options, state, mode, target)

    def replace(self, **changes: Any) -> ImageTrigger:
        """Return a copy of the record with some fields changed."""
        return dataclasses.replace(self, **changes)
