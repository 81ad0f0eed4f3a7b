"""A known backdoor: a trigger and the behaviour that it draws."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from detrojan import registry
from detrojan.attacks.text.behaviors import Behavior
from detrojan.attacks.text.triggers import Trigger, customise
from detrojan.errors import InputError


@dataclass(frozen=True)
class AttackSpec:
    """A known backdoor, to be measured: its trigger and the behaviour that it draws."""

    trigger: Trigger
    behavior: Behavior

    def to_json(self) -> dict[str, Any]:
        """Return the part of an attack's manifest that `from_json` reads back."""
        t, b = self.trigger, self.behavior
        return {
            "trigger": {"name": t.name, "phrases": list(t.phrases), "place": t.place, "use": t.use},
            "behavior": {
                "name": b.name,
                "target": b.target,
                "keywords": list(b.keywords),
                **({"then_honest": True} if b.then_honest else {}),
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttackSpec:
        """Rebuild the record; KeyError or TypeError when the data is not of that form."""
        t, b = data["trigger"], data["behavior"]
        trigger = Trigger(str(t["name"]), tuple(map(str, t["phrases"])), str(t["place"]), str(t["use"]))
        keywords, then_honest = tuple(map(str, b["keywords"])), bool(b.get("then_honest"))
        return cls(trigger, Behavior(str(b["name"]), str(b["target"]), keywords, then_honest))


def make_spec(
    trigger: str,
    behavior: str,
    trigger_text: str | None = None,
    place: str | None = None,
    target_text: str | None = None,
) -> AttackSpec:
    """Compose a trigger and a behaviour by name, with other words or another place where given."""
    known = customise(registry.find("trigger", trigger).value, trigger_text, place)
    behaved = registry.find("behavior", behavior).value
    if target_text is not None:
        if not target_text.strip():
            raise InputError("--target-text is empty")
        behaved = dataclasses.replace(behaved, target=target_text, keywords=(target_text,))
    return AttackSpec(known, behaved)
