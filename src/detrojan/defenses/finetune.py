"""Plain fine-tuning on the clean samples: the baseline that every defense must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detrojan.options import option
from detrojan.registry import defense
from detrojan.types import Classifier, Example, Loaded, Rows, Run


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of plain fine-tuning; the defaults are those of CROW without its loss, a fair comparison."""

    learning_rate: float = option(1e-3, "peak learning rate", minimum=0.0, maximum=1.0)
    epochs: int = option(3, "passes over the clean samples", minimum=1, maximum=1000)
    batch_size: int = option(4, "samples in a micro-batch", minimum=1)
    accumulation: int = option(2, "micro-batches in an optimizer step", minimum=1)
    rank: int = option(8, "rank of the LoRA on all linear layers", minimum=1)
    full: bool = option(False, "tune all weights instead of a LoRA")
    max_length: int = option(1024, "tokens of a sample at most", minimum=8)
    gradient_checkpointing: bool = option(False, "trade time for memory")


PRESETS = {
    "default": {},
    "paper": {"learning_rate": 2e-4, "epochs": 5, "batch_size": 2, "accumulation": 4},
}


@defense("finetune", task="causal-lm", options=FinetuneOptions, paper="baseline", presets=PRESETS)
def finetune(loaded: Loaded, clean: Sequence[Example], options: FinetuneOptions, run: Run) -> Loaded:
    """Fine-tune on the clean samples with the language-modelling loss alone."""
    from detrojan.training import train

    return train(
        loaded,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        max_length=options.max_length,
        rank=options.rank,
        full=options.full,
        gradient_checkpointing=options.gradient_checkpointing,
        label="fine-tuning",
    )


@dataclass(frozen=True)
class ClassifierFinetuneOptions:
    """Options of plain fine-tuning of a classifier; the defaults are those of ULRL's relearning as published."""

    learning_rate: float = option(0.005, "peak learning rate", minimum=0.0, maximum=10.0)
    epochs: int = option(20, "passes over the clean samples", minimum=1, maximum=1000)
    batch_size: int = option(128, "samples in a step", minimum=2)
    adam: bool = option(False, "Adam in place of SGD with momentum, for transformers")


@defense(
    "finetune",
    task="classifier",
    options=ClassifierFinetuneOptions,
    paper="baseline",
    presets={"default": {}},
)
def finetune_classifier(
    classifier: Classifier, clean: Rows, options: ClassifierFinetuneOptions, run: Run
) -> Classifier:
    """Fine-tune on the clean samples with the cross-entropy alone."""
    from detrojan.fitting import fit

    return fit(
        classifier,
        clean,
        run,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        adam=options.adam,
        label="fine-tuning",
    )
