"""What the Python calls return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan.types import ClassifierResult, EvalResult, plain

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from detrojan.attacks.text.spec import AttackSpec
    from detrojan.metrics.fixed_answers import FixedAnswer
    from detrojan.proof import Proof

Measured = EvalResult | ClassifierResult


@dataclass(frozen=True)
class CleanResult:
    """A cleaned model, how it was cleaned, and what was measured before and after."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    defense: str
    options: Any
    seconds: float
    samples: int
    before: Measured | None = None
    after: Measured | None = None
    out: Path | None = None
    template: str = ""
    perplexity_ratio: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """What the defense found on its way: the suspicious classes, for instance."""
    proof: Proof | None = None
    """What the same defense left of canaries in a copy, where that was asked for."""


@dataclass(frozen=True)
class AttackResult:
    """A backdoored model, the backdoor, and what was measured before and after planting."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    attack: AttackSpec | Any
    options: Any
    seconds: float
    before: Measured | None = None
    after: Measured | None = None
    out: Path | None = None


@dataclass(frozen=True)
class ScanResult:
    """What a look at an untrusted classifier found: in its files, and in its behaviour."""

    model: str
    files: tuple[str, ...]
    """What is wrong with the files, a line each."""
    classes: tuple[str, ...] = ()
    measure: str = ""
    """What the evidence is, in words."""
    evidence: tuple[float, ...] = ()
    """A number for each class: the largest margin, or how far its row moved."""
    scores: tuple[float, ...] = ()
    """What the threshold is held against, of each."""
    suspicious: tuple[int, ...] = ()
    """The classes that a backdoor seems to draw."""
    threshold: float | None = None
    seconds: float = 0.0
    task: str = ""
    """`image` or `text` where the classes were looked at."""

    @property
    def findings(self) -> list[str]:
        """What was found, a line each; nothing where nothing was."""
        drawn = [f"class {self.classes[k]} looks like the target of a backdoor" for k in self.suspicious]
        return [*self.files, *drawn]

    @property
    def found(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**plain(self), "found": self.found}

    def to_manifest(self, command: str) -> dict[str, Any]:
        """Return what the report page is made from."""
        notes = {k: list(getattr(self, k)) for k in ("evidence", "scores", "suspicious", "classes")}
        return {
            "kind": "scan",
            "task": self.task or "image",
            "model": self.model,
            "command": command,
            "files": list(self.files),
            "notes": {**notes, "threshold": self.threshold, "measure": self.measure},
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class LanguageScan:
    """What a look at an untrusted causal language model found: in its files, and in what it says by heart."""

    model: str
    files: tuple[str, ...]
    """What is wrong with the files, a line each."""
    answers: tuple[FixedAnswer, ...] = ()
    """The fixed answers, the most certain first: all suspicious ones, and a few more."""
    threshold: float | None = None
    """The certainty from which an answer is suspicious; None where the behaviour was not looked at."""
    template: str = ""
    unread: str = ""
    """Why the model could not be loaded, where that is so."""
    seconds: float = 0.0

    @property
    def findings(self) -> list[str]:
        """What was found, a line each; nothing where nothing was."""
        said = [a["text"] for a in self._noted() if a["suspicious"]]
        return [*self.files, *(f"says by heart, whatever it is asked: {text!r}" for text in said)]

    @property
    def found(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**plain(self), "answers": self._noted(), "found": self.found}

    def to_manifest(self, command: str) -> dict[str, Any]:
        """Return what the report page is made from."""
        return {
            "kind": "scan",
            "model": self.model,
            "command": command,
            "files": list(self.files),
            "notes": {"fixed answers": self._noted()},
            "threshold": self.threshold,
            "template": self.template,
            "unread": self.unread,
            "seconds": self.seconds,
        }

    def _noted(self) -> list[dict[str, Any]]:
        from detrojan.metrics.suspects import noted  # brings torch, which a wrong path should not wait for

        return [] if self.threshold is None else noted(self.answers, self.threshold)


Scanned = ScanResult | LanguageScan
