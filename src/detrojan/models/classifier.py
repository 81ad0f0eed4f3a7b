"""The door in for classifiers: an untrusted image or text classifier becomes a `Classifier`; and how it is fed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from detrojan.errors import InputError, first_line
from detrojan.models.feed import normalise, pixels, tokenise
from detrojan.models.geometry import geometry
from detrojan.models.head import find_head
from detrojan.models.kind import takes_texts
from detrojan.models.load import (
    cast_all,
    check_files,
    compute_dtype,
    load_tokenizer,
    locate,
    pick_device,
    read_json,
)
from detrojan.models.mode import evaluating
from detrojan.models.zoo import ZooForImageClassification
from detrojan.types import Classifier, Labelled, Rows


def logits(classifier: Classifier, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits (batch, classes) in float32; images are scaled and normalised here."""
    model = classifier.model
    device = next(model.parameters()).device
    batch = {k: v.to(device) for k, v in inputs.items()}
    if classifier.task == "image":
        batch = {"pixel_values": normalise(classifier, batch["pixel_values"])}
    out = model(**batch) if isinstance(model, PreTrainedModel) else model(*batch.values())
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise InputError(f"{classifier.source}: its output is not a table of logits (samples, classes)")
    return out.float()


def predict(classifier: Classifier, inputs: Mapping[str, Tensor], batch_size: int = 256) -> Tensor:
    """Return the predicted class of every row, (n,), on the CPU."""
    return torch.cat([o.argmax(-1).cpu() for o in each_logits(classifier, inputs, batch_size)])


def each_logits(
    classifier: Classifier, inputs: Mapping[str, Tensor], batch_size: int = 256
) -> Iterator[Tensor]:
    """Yield the logits of one batch after the other, in evaluation mode."""
    count = len(next(iter(inputs.values())))
    with evaluating(classifier.model):
        for start in range(0, count, batch_size):
            with torch.inference_mode():  # left before the yield, lest the caller's code run in it
                found = logits(classifier, {k: v[start : start + batch_size] for k, v in inputs.items()})
            yield found


def load_classifier(
    source: str | Path | nn.Module,
    *,
    head: str | None = None,
    architecture: str | None = None,
    sample: Tensor | None = None,
    tokenizer: Any = None,
    device: str = "auto",
) -> Classifier:
    """Load a classifier from a directory, a hub name, a state dict file or an object.

    A directory or hub name holds a transformers or timm image classifier, or a text classifier. A state dict
    (.safetensors, or .pt/.pth read with weights only) is that of `architecture`, which is guessed from its keys
    where it can be. A module object is copied; `sample` is a batch of images as it takes them (one of our zoo takes
    pixels and normalises them itself), a text classifier needs its `tokenizer`. Raises InputError.
    """
    target = pick_device(device)
    if isinstance(source, ZooForImageClassification):
        return _finish(copy.deepcopy(source), source.config.architecture, head, target, None, ())
    if isinstance(source, PreTrainedModel) and tokenizer is not None:
        shown = source.config._name_or_path or type(source).__name__
        _check_classes(source, shown)
        return _finish(copy.deepcopy(source), shown, head, target, tokenizer, ())
    if isinstance(source, nn.Module):
        return _from_module(source, head, sample, target)
    path = locate(str(source))
    if path.is_file():
        from detrojan.models.state_dict import read_state_dict

        return _finish(read_state_dict(path, architecture), str(source), head, target, None, (path,))
    check_files(path, str(source))
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.json'}: not the configuration of a model")
    text = takes_texts(config)
    model = _pretrained(path, str(source), text)
    _check_classes(model, str(source))
    processor = load_tokenizer(path, str(source)) if text else _processor(path, config, str(source))
    files = tuple(sorted(path.glob("*.safetensors")))
    return _finish(model, str(source), head, target, processor, files)


def _check_classes(model: PreTrainedModel, source: str) -> None:
    kind = getattr(model.config, "problem_type", None)
    if kind == "multi_label_classification":
        raise InputError(
            f"{source}: gives a sample several labels at once; only classifiers of one are cleaned"
        )
    if kind == "regression" or model.config.num_labels < 2:
        raise InputError(f"{source}: a regression head, not a classifier; it has no classes to clean")


def _pretrained(path: Path, source: str, text: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if text else AutoModelForImageClassification
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if isinstance(getattr(config, "model_args", None), dict):
            config.model_args.pop(
                "num_classes", None
            )  # timm writes it here too, transformers gives it itself
        model, info = auto.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype="auto",
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{source}: no classifier that can be loaded ({first_line(error)})") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{source}: {len(missing)} weights are missing from the checkpoint, first {missing[0]}"
        )
    return model


def _processor(path: Path, config: dict[str, Any], source: str) -> Any:
    from transformers import AutoImageProcessor

    if "pretrained_cfg" not in config and not (path / "preprocessor_config.json").is_file():
        return None
    try:
        return AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{source}: its image processor cannot be loaded ({first_line(error)})") from None


def _narrow(model: PreTrainedModel) -> bool:
    """Say whether a model steps over few channels by convolutions of single pixels.

    Their weights' gradients write past their memory in oneDNN 3.12 where channels come last, on CPUs with AVX2 alone.
    """
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(c.kernel_size == (1, 1) and max(c.stride) > 1 and c.in_channels < 8 for c in convolutions)


def _finish(
    model: PreTrainedModel,
    source: str,
    head: str | None,
    device: torch.device,
    processor: Any,
    files: tuple[Path, ...],
) -> Classifier:
    config, storage = model.config, next(model.parameters()).dtype
    cast_all(model.to(device), compute_dtype(storage, device))
    if device.type == "cpu" and isinstance(model, ZooForImageClassification) and not _narrow(model):
        model.to(memory_format=torch.channels_last)  # a quarter faster; models of others may not bear it
    model.eval()
    text = hasattr(processor, "pad") and hasattr(processor, "vocab_size")
    made = Classifier(
        model,
        "text" if text else "image",
        "",
        _names(config),
        source,
        storage,
        processor=processor,
        files=files,
    )
    if text:
        ids = torch.full((1, 2), no_padding(model))
        return _with_head(made, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, head)
    made = made.replace(**geometry(config, processor, source))
    return _with_head(made, {"pixel_values": torch.zeros(1, *(made.shape or ()))}, head)


def _names(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[k]) for k in sorted(config.id2label))


def no_padding(model: nn.Module) -> int:
    """Return the number of a token that is no padding."""
    return 2 if getattr(getattr(model, "config", None), "pad_token_id", None) == 1 else 1


def _with_head(made: Classifier, example: Mapping[str, Tensor], head: str | None) -> Classifier:
    """Run the model on one example to find its head; its classes are called by number where it does not name them."""
    seen: list[Tensor] = []

    def run() -> Tensor:
        seen.append(logits(made, example))
        return seen[-1]

    try:
        found = find_head(made.model, run, head)
    except InputError as error:
        raise InputError(f"{made.source}: {str(error).removeprefix(f'{made.source}: ')}") from None
    except Exception as error:
        shapes = ", ".join(" x ".join(map(str, v.shape[1:])) for v in example.values())
        raise InputError(
            f"{made.source}: cannot be run on a sample of shape {shapes} ({first_line(error)})"
        ) from None
    classes = int(seen[-1].shape[-1])
    names = made.names or tuple(map(str, range(classes)))
    if len(names) != classes or classes < 2:
        raise InputError(f"{made.source}: names {len(names)} classes, but its output has {classes}")
    return made.replace(head=found, names=names)


def _from_module(
    module: nn.Module, head: str | None, sample: Tensor | None, device: torch.device
) -> Classifier:
    if sample is None:
        raise InputError(
            "a module in memory needs its data as (images, labels) tensors, or, of texts, its tokenizer"
        )
    if sample.dim() != 4 or not len(sample):
        raise InputError(
            f"data: images of shape {tuple(sample.shape)}, expected (n, channels, height, width)"
        )
    own = copy.deepcopy(module).to(device)
    first = next((p for p in own.parameters() if p.is_floating_point()), None)
    if first is None:
        raise InputError("the module has no parameters")
    shape: Any = tuple(sample.shape[1:])
    names: tuple[str, ...] = ()
    if isinstance(own, PreTrainedModel):
        _check_classes(own, type(module).__name__)
        names = _names(own.config)
    made = Classifier(own, "image", "", names, type(module).__name__, first.dtype, shape=shape)
    return _with_head(made, {"pixel_values": sample[:1]}, head)


def to_rows(classifier: Classifier, data: Labelled) -> Rows:
    """Bring samples into the form that the classifier takes; raises InputError where they do not fit it."""
    labels = data.labels.long()
    if len(labels) == 0:
        raise InputError(f"{data.source}: no samples in it")
    if int(labels.min()) < 0 or int(labels.max()) >= classifier.classes:
        raise InputError(
            f"{data.source}: label {int(labels.max() if labels.min() >= 0 else labels.min())}"
            f" is out of range; the model has the classes 0 to {classifier.classes - 1}"
        )
    if classifier.task == "text":
        return Rows(tokenise(classifier, data), labels)
    return Rows({"pixel_values": pixels(classifier, data)}, labels)
