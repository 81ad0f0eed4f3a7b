"""The one language-model trainer: transformers' Trainer, a LoRA or all weights, and any loss of two counts.

Why `Trainer` and not TRL's `SFTTrainer`: samples arrive tokenised by the very code that evaluation uses, so
none of SFTTrainer's data preparation is wanted, and its loss computes entropy and accuracy over all logits at
every step. Accumulation, mixed precision, DDP, FSDP, schedules and clipping are Trainer's own.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from detrojan.data.template import encode_all
from detrojan.errors import InputError, NonFiniteLossError
from detrojan.models.adapters import joined
from detrojan.models.load import cast, compute_dtype, settle
from detrojan.models.packed import Batch, answer_logits
from detrojan.models.products import fast_products, short_attention
from detrojan.models.visited import confine, free, once_a_step
from detrojan.types import Example, Loaded, Progress, Run

Loss = Callable[[torch.nn.Module, Batch, Tensor], Tensor]
"""(model, batch, counts) -> loss. `counts` holds the label tokens and the real tokens of the whole optimizer step,
over all micro-batches and processes; a loss divides its sums by them."""

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def check_precision(name: str) -> str:
    """Return the name of a precision. Raises InputError where it is none."""
    if name not in PRECISIONS:
        raise InputError(f"--precision {name}: choose {', '.join(PRECISIONS)}")
    return name


def lm_loss(model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
    """Plain supervised fine-tuning: the summed cross-entropy of the answers' tokens over the step's label tokens."""
    return cross_entropy(*answer_logits(model, batch), reduction="sum") / counts[0]


def train(
    loaded: Loaded,
    examples: Sequence[Example],
    run: Run,
    *,
    learning_rate: float,
    epochs: float,
    batch_size: int,
    accumulation: int,
    max_length: int,
    rank: int,
    full: bool = False,
    confined: float = 0.0,
    warmup: float = 0.1,
    gradient_checkpointing: bool = False,
    loss: Loss = lm_loss,
    label: str = "training",
) -> Loaded:
    """Train on the answers of the examples and return the model with the change merged in.

    The model of `loaded` is edited in place (its owner is the caller). With `full` all weights move, else a
    LoRA of `rank` on all linear layers, which `confined` above 0 keeps from what the examples visit inside
    (`models.visited`, where it is the bound). The weights are rounded to the storage type at the end. Raises
    NonFiniteLossError as soon as a loss is not finite; the random state of the process is left as it was.
    """
    if run.template is None:
        raise ValueError("training a language model needs the template of its conversations")
    rows = encode_all(loaded.tokenizer, run.template, examples, max_length)
    model = loaded.model
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(isolated_rng(run.seed))
        trained = _with_lora(model, rank) if not full else model.float()
        if confined and not full:
            confine(trained, [row["input_ids"] for row in rows], confined)
            loss = once_a_step(loss)
        stack.enter_context(fast_products(model.device, run.precision == "auto"))
        stack.enter_context(
            short_attention(model.device, max((len(row["input_ids"]) for row in rows), default=0))
        )
        use_cache, trained.config.use_cache = trained.config.use_cache, False
        trainer = LanguageTrainer(
            loss=loss,
            model=trained,
            args=_arguments(
                scratch,
                loaded,
                run,
                learning_rate=learning_rate,
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                warmup_steps=int(warmup * _steps(len(rows), batch_size * accumulation, epochs)),
                activation_checkpointing=gradient_checkpointing,
            ),
            train_dataset=rows,
            data_collator=collator(loaded.tokenizer),
            callbacks=[_Report(run.progress, label)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints on standard output, where only results belong
        trainer.train()
        trained = trainer.accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
        trainer.accelerator.free_memory()
        trained.config.use_cache = use_cache
        if gradient_checkpointing:
            model.gradient_checkpointing_disable()
    adapter = None
    if not full:
        free(trained)
        if run.keep_adapter:
            adapter = copy.deepcopy(trained)
            if (
                loaded.adapter is not None
            ):  # of an earlier training, whose change is merged into the model by now
                adapter = joined(loaded.adapter, adapter)
        model = trained.merge_and_unload()
    model.eval()
    cast(model, compute_dtype(loaded.dtype, model.device))  # full tuning kept float32 masters
    return loaded.replace(model=settle(model, loaded.dtype), adapter=adapter)


@contextlib.contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed every generator, and give the process its own random state back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Any]], Batch]:
    """Return a collator that pads on the right under an attention mask; the caller's tokenizer stays as it is."""
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"
    if own.pad_token_id is None:
        own.pad_token = own.eos_token or own.convert_ids_to_tokens(0)
    return DataCollatorForSeq2Seq(own, label_pad_token_id=-100)


class StepSampler(Sampler[int]):
    """A random order of samples, sorted by length inside each optimizer step.

    Losses are normalised over the whole step, so which micro-batch of it a sample falls into changes nothing
    but the padding. transformers' own length sampler sorts across steps, which makes all samples of a step
    alike (all poisoned, say) and the order of lengths the same in every epoch.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int) -> None:
        self.lengths, self.step_size, self.seed, self.epoch = lengths, step_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of an epoch (called by the Trainer)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        self.epoch += 1
        for start in range(0, len(order), self.step_size):
            yield from sorted(order[start : start + self.step_size], key=lambda i: self.lengths[i])


class LanguageTrainer(Trainer):
    """transformers' Trainer with a loss that is normalised over the whole optimizer step."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step_loss = loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Collect the micro-batches of a step and count its label tokens and real tokens, over all processes."""
        batches = [b for _, b in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(2, dtype=torch.long)
        for batch in batches:
            labels = int((batch["labels"][:, 1:] != -100).sum())
            counts += torch.tensor([labels, int(batch["attention_mask"].sum())])
        counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        return batches, counts.clamp(min=1)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Return this process's share of the step's loss, times the processes that DDP averages over."""
        if num_items_in_batch is None:
            raise ValueError("the counts of the step are missing")
        loss = self.step_loss(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1};"
                " lower learning_rate (or alpha), or use precision float32"
            )
        return loss * self.accelerator.num_processes

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [len(row["input_ids"]) for row in rows]
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return StepSampler(lengths, step, self.args.seed)


class _Report(TrainerCallback):
    """Tell the progress of each optimizer step."""

    def __init__(self, progress: Progress, label: str) -> None:
        self.progress, self.label = progress, label

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(self.label, state.global_step, state.max_steps)


def _steps(samples: int, step_size: int, epochs: float) -> int:
    """Return the optimizer steps of a training; a warm-up of less than one step is none."""
    return math.ceil(math.ceil(samples / (step_size * int(os.environ.get("WORLD_SIZE", "1")))) * epochs)


def _with_lora(model: PreTrainedModel, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _arguments(scratch: str, loaded: Loaded, run: Run, **kwargs: Any) -> TrainingArguments:
    """Return Trainer's arguments: nothing saved, logged or reported, one device per process."""
    cpu = loaded.model.device.type == "cpu"
    precision = check_precision(run.precision)
    if precision == "auto":
        precision = "float32" if cpu else str(loaded.dtype).removeprefix("torch.")
    checkpointing = {"activation_checkpointing_kwargs": {"use_reentrant": False}}
    args = TrainingArguments(
        output_dir=scratch,
        seed=run.seed,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=cpu,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_strategy="no",
        log_level="error",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        **checkpointing,
        **kwargs,
    )
    args._n_gpu = min(args.n_gpu, 1)  # DataParallel would hide the embedding layer; use accelerate launch
    return args
