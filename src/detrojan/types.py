"""The records that travel through the house."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from detrojan.scores import JailbreakResult, JudgeResult, TaskScore

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def silent(label: str, done: int, total: int) -> None:
    """Report no progress: the default of the Python calls."""


Note = Callable[[str, Any], None]
"""Called with (what was found, JSON data)."""


def unheard(what: str, data: Any) -> None:
    """Keep no notes: the default of the Python calls."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One clean sample: what the user asks and, where known, the honest answer.

    `input` is Alpaca's second field. It is kept apart from the instruction because the Alpaca template
    gives it a section of its own; other templates show it below the instruction.
    """

    prompt: str
    answer: str | None = None
    input: str = ""
    history: tuple[Message, ...] = ()
    complete: bool = True
    """False when the answer was cut off, so that no end-of-turn token may be taught after it."""

    def with_prompt(self, prompt: str) -> Example:
        """Return the same example asked in other words."""
        return dataclasses.replace(self, prompt=prompt)


@dataclass(frozen=True)
class Template:
    """A way to write a conversation down: a Jinja chat template and its short name."""

    name: str
    source: str
    special_tokens: bool
    """Whether the tokenizer adds its own special tokens (a chat template writes them itself)."""


@dataclass(frozen=True)
class Loaded:
    """A model at work, with what is needed to hand it back as it came.

    `dtype` is the storage type of the checkpoint; `model` may compute in another one.
    A method that receives a `Loaded` owns its model and may edit it in place.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    dtype: torch.dtype
    files: tuple[Path, ...] = ()
    adapter: Any = None
    """The trained PEFT model, when the LoRA is kept beside the weights and not merged into them."""
    model_dir: str | None = None
    """The local directory or hub name of a full model; None for an adapter, a GGUF file or an object."""

    def replace(self, **changes: Any) -> Loaded:
        """Return a copy of the record with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Labelled:
    """Samples of a classification task as they were read.

    `inputs` are images, a uint8 tensor (n, channels, height, width) or a sequence of PIL images, or texts.
    """

    inputs: Any
    labels: Tensor
    """int64, (n,)"""
    names: tuple[str, ...] = ()
    """What the classes are called, in the order of the labels; () when that is not known."""
    source: str = "samples"

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Rows:
    """Samples as a classifier takes them: tensors with one row for each sample.

    Images are `pixel_values` (n, channels, height, width), uint8 in 0 to 255 or floats in 0 to 1 (a plain module:
    floats as the module takes them); texts are `input_ids` and `attention_mask` (n, tokens).
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    """int64, (n,)"""
    targets: Tensor | None = None
    """Another model's logits, (n, classes), where a loss wants them."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Rows:
        """Return the samples at `index` (positions or a mask), in that order."""
        targets = None if self.targets is None else self.targets[index]
        return Rows({k: v[index] for k, v in self.inputs.items()}, self.labels[index], targets)


@dataclass(frozen=True)
class Classifier:
    """A classifier at work, with what is needed to feed it and to hand it back as it came.

    A method that receives a `Classifier` owns its model and may edit it in place.
    """

    model: nn.Module
    task: str
    """`image` or `text`"""
    head: str
    """The dotted name of the last linear layer, whose rows are the classes."""
    names: tuple[str, ...]
    source: str
    dtype: torch.dtype
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of an image as the model takes it."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    processor: Any = None
    """The checkpoint's own image processor or tokenizer."""
    files: tuple[Path, ...] = ()

    def replace(self, **changes: Any) -> Classifier:
        """Return a copy of the record with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return len(self.names)

    @property
    def normalises(self) -> bool:
        """Whether images are given in 0..1 and normalised for it; a plain module takes them as they are."""
        return self.mean != (0.0,) or self.std != (1.0,)


@dataclass(frozen=True)
class Probe:
    """A known trigger on held-out samples, ready to be measured on a classifier."""

    drawn: Tensor
    """The label that the trigger is to draw from each sample, int64 (n,)."""
    triggered: Callable[[Tensor], Rows]
    """Return the samples at these positions with the trigger on them, under their own labels."""


@dataclass(frozen=True)
class Run:
    """What a method may know besides the model, the clean samples and its options: nothing of a trigger."""

    template: Template | None = None
    """How conversations are written down; None for a classifier."""
    seed: int = 0
    progress: Progress = silent
    keep_adapter: bool = False
    precision: str = "auto"
    note: Note = unheard
    """Where a method tells what it found, for the manifest and the report."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval of a fraction."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """One prompt as the model saw it (before the template), the answer, and whether the attack hit."""

    prompt: str
    response: str
    hit: bool
    keyword_hit: bool
    clean_prompt: str
    clean_response: str
    recovery: float


@dataclass(frozen=True)
class TemplateResult:
    """What was measured in one template. Rates are None without an attack to measure."""

    template: str
    n_clean: int
    n_triggered: int
    asr: float | None = None
    asr_interval: Interval | None = None
    asr_keyword: float | None = None
    asr_keyword_interval: Interval | None = None
    recovery: float | None = None
    clean_asr: float | None = None
    clean_asr_interval: Interval | None = None
    clean_asr_keyword: float | None = None
    empty: float | None = None


@dataclass(frozen=True)
class EvalResult:
    """The result of `evaluate` on a causal language model; rates are fractions.

    The fields of `TemplateResult` speak of the matched template, `by_template` of each one asked for.
    """

    model: str
    template: str
    n_clean: int
    n_triggered: int
    perplexity: float
    asr: float | None
    asr_interval: Interval | None
    asr_keyword: float | None
    asr_keyword_interval: Interval | None
    recovery: float | None
    clean_asr: float | None
    clean_asr_interval: Interval | None
    clean_asr_keyword: float | None
    empty: float | None
    worst_template: str
    worst_asr: float | None
    by_template: dict[str, TemplateResult]
    samples: tuple[Sample, ...]
    clean_samples: tuple[dict[str, str], ...]
    consistency: dict[str, list[float]]
    kl: float | None = None
    agreement: float | None = None
    reference: str | None = None
    reference_recovery: float | None = None
    perplexity_of: str = "answers in the data"
    tasks: tuple[TaskScore, ...] = ()
    judge: JudgeResult | None = None
    jailbreak: JailbreakResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; intervals become [low, high]."""
        return plain(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EvalResult:
        """Rebuild the record from what `to_json` gave."""
        from detrojan.scores import rebuilt

        beyond = rebuilt(data)
        known = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name not in beyond}
        by_template = {k: TemplateResult(**_intervals(v)) for k, v in data["by_template"].items()}
        samples = tuple(Sample(**s) for s in data["samples"])
        clean = tuple(data["clean_samples"])
        return cls(
            **{
                **_intervals(known),
                **beyond,
                "by_template": by_template,
                "samples": samples,
                "clean_samples": clean,
            }
        )


@dataclass(frozen=True)
class ClassifierResult:
    """The result of `evaluate` on a classifier; rates are fractions, None without an attack to measure."""

    model: str
    accuracy: float
    accuracy_interval: Interval
    n_clean: int
    n_triggered: int = 0
    asr: float | None = None
    asr_interval: Interval | None = None
    recovery_accuracy: float | None = None
    recovery_interval: Interval | None = None
    der: float | None = None
    reference: str | None = None
    classes: tuple[str, ...] = ()
    per_class: tuple[float | None, ...] = ()
    """The accuracy of each class."""

    def replace(self, **changes: Any) -> ClassifierResult:
        """Return a copy of the record with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; intervals become [low, high]."""
        return plain(self)


def _intervals(data: dict[str, Any]) -> dict[str, Any]:
    return {k: Interval(*v) if k.endswith("_interval") and v else v for k, v in data.items()}


def plain(value: Any) -> Any:
    """Turn records into JSON data: intervals into pairs, other records into objects, paths into text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Interval):
        return [plain(value.low), plain(value.high)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
