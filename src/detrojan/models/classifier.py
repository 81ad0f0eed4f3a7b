"""The door in for classifiers: an untrusted image or text classifier becomes a `Classifier`; and how it is fed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detrojan.errors import InputError, first_line
from detrojan.models.head import find_head
from detrojan.models.load import (
    cast,
    check_files,
    compute_dtype,
    load_tokenizer,
    locate,
    pick_device,
    read_json,
)
from detrojan.models.zoo import ZooForImageClassification
from detrojan.types import Classifier, Labelled, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_TOKENS = 256
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".tar"}


def logits(classifier: Classifier, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits (batch, classes) in float32; images are scaled and normalised here."""
    model = classifier.model
    device = next(model.parameters()).device
    batch = {k: v.to(device) for k, v in inputs.items()}
    if classifier.task == "image":
        batch = {"pixel_values": normalise(classifier, batch["pixel_values"])}
    out = model(**batch) if hasattr(model, "config") else model(*batch.values())
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise InputError(f"{classifier.source}: its output is not a table of logits (samples, classes)")
    return out.float()


def normalise(classifier: Classifier, images: Tensor) -> Tensor:
    """Return images as the model takes them: uint8 is brought to 0..1, then the mean and deviation are applied."""
    dtype = next(classifier.model.parameters()).dtype
    scaled = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
    mean, std = (
        torch.tensor(v, dtype=dtype, device=images.device).view(1, -1, 1, 1)
        for v in (classifier.mean, classifier.std)
    )
    return (scaled - mean) / std


def predict(classifier: Classifier, inputs: Mapping[str, Tensor], batch_size: int = 256) -> Tensor:
    """Return the predicted class of every row, (n,), on the CPU."""
    return torch.cat([o.argmax(-1).cpu() for o in each_logits(classifier, inputs, batch_size)])


def each_logits(
    classifier: Classifier, inputs: Mapping[str, Tensor], batch_size: int = 256
) -> Iterator[Tensor]:
    """Yield the logits of one batch after the other, in evaluation mode."""
    was_training = classifier.model.training
    classifier.model.eval()
    count = len(next(iter(inputs.values())))
    try:
        for start in range(0, count, batch_size):
            with torch.inference_mode():
                yield logits(classifier, {k: v[start : start + batch_size] for k, v in inputs.items()})
    finally:
        classifier.model.train(was_training)


def load_classifier(
    source: str | Path | nn.Module,
    *,
    head: str | None = None,
    architecture: str | None = None,
    sample: Tensor | None = None,
    device: str = "auto",
) -> Classifier:
    """Load a classifier from a directory, a hub name, a state dict file or an object.

    A directory or hub name holds a transformers or timm image classifier, or a text classifier. A state dict
    (.safetensors, or .pt/.pth read with weights only) is that of `architecture`, which is guessed from its keys
    where it can be. A module object is copied; `sample` is a batch as it takes them. Raises InputError.
    """
    target = pick_device(device)
    if isinstance(source, ZooForImageClassification) and sample is None:
        return _finish(copy.deepcopy(source), source.config.architecture, head, target, None, ())
    if isinstance(source, nn.Module):
        return _from_module(source, head, sample, target)
    path = locate(str(source))
    if path.is_file():
        from detrojan.models.state_dict import read_state_dict

        return _finish(read_state_dict(path, architecture), str(source), head, target, None, (path,))
    check_files(path, str(source))
    config = read_json(path / "config.json")
    text = any("ForSequenceClassification" in str(a) for a in config.get("architectures") or [])
    model = _pretrained(path, str(source), text)
    if getattr(model.config, "problem_type", None) == "regression" or model.config.num_labels < 2:
        raise InputError(f"{source}: a regression head, not a classifier; it has no classes to clean")
    processor = load_tokenizer(path, str(source)) if text else _processor(path, str(source))
    files = tuple(sorted(path.glob("*.safetensors")))
    return _finish(model, str(source), head, target, processor, files)


def _pretrained(path: Path, source: str, text: bool) -> PreTrainedModel:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if text else AutoModelForImageClassification
    try:
        model, info = auto.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, dtype="auto"
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


def _processor(path: Path, source: str) -> Any:
    from transformers import AutoImageProcessor

    is_timm = "pretrained_cfg" in read_json(path / "config.json")
    if not is_timm and not (path / "preprocessor_config.json").is_file():
        return None
    try:
        return AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{source}: its image processor cannot be loaded ({first_line(error)})") from None


def _finish(
    model: PreTrainedModel,
    source: str,
    head: str | None,
    device: torch.device,
    processor: Any,
    files: tuple[Path, ...],
) -> Classifier:
    config, storage = model.config, next(model.parameters()).dtype
    cast(model.to(device), compute_dtype(storage, device))
    model.eval()
    names = tuple(str(config.id2label[k]) for k in sorted(config.id2label))
    text = hasattr(processor, "pad") and hasattr(processor, "vocab_size")
    made = Classifier(
        model, "text" if text else "image", "", names, source, storage, processor=processor, files=files
    )
    if not text:
        made = made.replace(**_geometry(config, processor, source))
        example = {"pixel_values": torch.zeros(1, *(made.shape or ()))}
    else:
        example = {"input_ids": torch.tensor([[1, 1]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    try:
        return made.replace(head=find_head(model, lambda: logits(made, example), head))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _geometry(config: Any, processor: Any, source: str) -> dict[str, Any]:
    """Return shape, mean and std of the images that the model takes, from its processor or configuration."""
    data = getattr(processor, "data_config", None)  # timm's
    if data is not None:
        return {"shape": tuple(data["input_size"]), "mean": tuple(data["mean"]), "std": tuple(data["std"])}
    channels = int(getattr(config, "num_channels", 3))
    if processor is not None:
        size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
        size = size or processor.size
        edge = size.get("shortest_edge")
        shape = (channels, int(size.get("height") or edge), int(size.get("width") or edge))
        plain = not getattr(processor, "do_normalize", True)
        mean = (0.0,) * channels if plain else tuple(processor.image_mean)
        std = (1.0,) * channels if plain else tuple(processor.image_std)
        return {"shape": shape, "mean": mean, "std": std}
    edge = getattr(config, "image_size", None)
    if edge is None:
        raise InputError(
            f"{source}: neither preprocessor_config.json nor image_size says how large its images are"
        )
    height, width = edge if isinstance(edge, (list, tuple)) else (edge, edge)
    mean = tuple(getattr(config, "image_mean", (0.5,) * channels))
    std = tuple(getattr(config, "image_std", (0.5,) * channels))
    return {"shape": (channels, int(height), int(width)), "mean": mean, "std": std}


def _from_module(
    module: nn.Module, head: str | None, sample: Tensor | None, device: torch.device
) -> Classifier:
    if sample is None:
        raise InputError("a module in memory needs its data as (images, labels) tensors")
    own = copy.deepcopy(module).to(device)
    first = next(own.parameters(), None)
    if first is None:
        raise InputError("the module has no parameters")
    shape = tuple(sample.shape[1:])
    made = Classifier(own, "image", "", (), type(module).__name__, first.dtype, shape=shape)
    found: list[Tensor] = []

    def run() -> Tensor:
        found.append(logits(made, {"pixel_values": sample[:1]}))
        return found[-1]

    name = find_head(own, run, head)
    classes = found[-1].shape[-1] if found else own.get_submodule(name).out_features
    own.train(module.training)
    return made.replace(head=name, names=tuple(map(str, range(int(classes)))))


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


def tokenise(classifier: Classifier, data: Labelled) -> dict[str, Tensor]:
    """Return input_ids and attention_mask (n, tokens) of texts, padded to the longest and cut at MAX_TOKENS."""
    texts = data.inputs
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{data.source}: holds images, but {classifier.source} is a text classifier")
    tokenizer = classifier.processor
    limit = getattr(classifier.model.config, "max_position_embeddings", MAX_TOKENS) or MAX_TOKENS
    if tokenizer.pad_token_id is None:
        raise InputError(f"{classifier.source}: its tokenizer has no padding token")
    rows = tokenizer(
        list(texts), padding=True, truncation=True, max_length=min(MAX_TOKENS, limit), return_tensors="pt"
    )
    return {k: rows[k] for k in ("input_ids", "attention_mask")}


def pixels(classifier: Classifier, data: Labelled) -> Tensor:
    """Return images (n, channels, height, width) as uint8, as the model sees them before normalisation.

    The checkpoint's own processor resizes and crops; its normalisation is undone, so that triggers and
    perturbations speak of pixels. Without a processor, arrays must fit and other images are resized.
    """
    images = data.inputs
    if isinstance(images, (list, tuple)) and images and isinstance(images[0], str):
        raise InputError(f"{data.source}: holds texts, but {classifier.source} is an image classifier")
    if isinstance(images, Tensor) and (
        images.is_floating_point() or tuple(images.shape[1:]) == classifier.shape
    ):
        if tuple(images.shape[1:]) != classifier.shape:
            raise InputError(_mismatch(data.source, tuple(images.shape[1:]), classifier))
        return images
    if isinstance(images, Tensor) and classifier.processor is None:
        raise InputError(_mismatch(data.source, tuple(images.shape[1:]), classifier))
    return torch.cat([_processed(classifier, part) for part in _parts(images)])


def _mismatch(source: str, shape: tuple[int, ...], classifier: Classifier) -> str:
    have, need = (" x ".join(map(str, s or ())) for s in (shape, classifier.shape))
    return f"{source}: its images are {have} (channels, height, width), {classifier.source} takes {need}"


def _parts(images: Tensor | Sequence[Any], size: int = 64) -> Iterator[list[Any]]:
    from PIL import Image

    def picture(image: Any) -> Any:
        if not isinstance(image, Tensor):
            return image
        array = image.permute(1, 2, 0).numpy()
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)

    for start in range(0, len(images), size):
        yield [picture(images[k]) for k in range(start, min(start + size, len(images)))]


def _processed(classifier: Classifier, images: list[Any]) -> Tensor:
    channels, height, width = classifier.shape or (3, 0, 0)
    if channels not in (1, 3):
        raise InputError(f"{classifier.source}: takes images of {channels} channels; give them as .npz")
    images = [i.convert("L" if channels == 1 else "RGB") for i in images]
    if classifier.processor is None:
        import numpy as np

        arrays = [np.asarray(i.resize((width, height))) for i in images]
        stack = torch.from_numpy(np.stack(arrays))
        return stack.unsqueeze(1) if channels == 1 else stack.permute(0, 3, 1, 2).contiguous()
    ready = classifier.processor(images, return_tensors="pt")["pixel_values"].float()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (classifier.mean, classifier.std))
    return ((ready * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
