"""The door out: a `Loaded` becomes an ordinary model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from detrojan.models.load import cast, cast_all
from detrojan.types import Classifier, Loaded

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES)


def save(loaded: Loaded, directory: Path) -> None:
    """Write the model as safetensors in its storage dtype, with its tokenizer, into an existing directory.

    Tokenizer files of a local checkpoint are copied byte for byte, never written anew.
    """
    if loaded.adapter is not None:
        for config in loaded.adapter.peft_config.values():
            config.base_model_name_or_path = loaded.model_dir
        loaded.adapter.save_pretrained(directory)
    else:
        compute = loaded.model.dtype
        cast(loaded.model, loaded.dtype)
        loaded.model.save_pretrained(directory)
        cast(loaded.model, compute)
    _save_tokenizer(loaded, directory)


def save_classifier(classifier: Classifier, directory: Path) -> None:
    """Write a classifier as safetensors in its storage dtype into an existing directory, its processor unchanged.

    A plain module has no configuration to write: its state dict alone is written.
    """
    model, processor = classifier.model, classifier.processor
    compute = next(p for p in model.parameters() if p.is_floating_point()).dtype
    if compute != classifier.dtype:
        cast_all(model, classifier.dtype)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(directory)
    else:
        from safetensors.torch import save_model

        save_model(model, str(directory / "model.safetensors"))
    if compute != classifier.dtype:
        cast_all(model, compute)
    if processor is not None and not classifier.files:
        processor.save_pretrained(directory)
    for root in {f.parent for f in classifier.files} if processor is not None else ():
        for name in PROCESSOR_FILES:
            if (root / name).is_file():
                shutil.copyfile(root / name, directory / name)


def _save_tokenizer(loaded: Loaded, directory: Path) -> None:
    roots = [f.parent for f in loaded.files if f.suffix == ".safetensors"]
    origin = next((r for r in roots if (r / "tokenizer_config.json").is_file()), None)
    if origin is None:
        loaded.tokenizer.save_pretrained(directory)
        return
    for name in TOKENIZER_FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, directory / name)
