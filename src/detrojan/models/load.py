"""The door in: an untrusted causal language model becomes a `Loaded`.

Only safetensors and GGUF are read, no pickle is ever opened and no code of a checkpoint is run.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrojan.errors import InputError, first_line
from detrojan.types import Loaded

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.gguf"]


def load(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "auto",
) -> Loaded:
    """Load a causal LM from a directory, a hub name, a PEFT adapter directory, a GGUF file or an object.

    A model object is copied, so that the caller's stays as it is; it needs `tokenizer`. Raises InputError
    when the source is missing, damaged, no causal language model, or stored as a pickle.
    """
    target = pick_device(device)
    if not isinstance(source, (str, Path)):
        return _from_object(source, tokenizer, target)
    path = locate(str(source))
    if path.is_file():
        return _from_gguf(path, str(source), target)
    if (path / "adapter_config.json").is_file():
        return _from_adapter(path, str(source), target)
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _from_gguf(ggufs[0], str(source), target)
        raise InputError(f"{source}: no config.json, adapter_config.json or single .gguf file in it")
    return _from_directory(path, str(source), target)


def pick_device(name: str) -> torch.device:
    """Turn `auto` into the accelerator that is there, else the CPU; check a named device."""
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None:
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK")  # set by accelerate launch: a device for each process
        return torch.device(found.type, int(rank)) if rank is not None and found.type != "mps" else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {name}: not available here; use auto or cpu") from None
    return device


def compute_dtype(storage: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type to compute in: float32 on a CPU (half types are emulated there), else the stored one."""
    import torch

    return torch.float32 if device.type == "cpu" else storage


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint; raises InputError naming the file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None


def locate(source: str) -> Path:
    """Return the local file or directory of a source, fetching a hub snapshot where it is a hub name."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not HUB_NAME.fullmatch(source) or path.suffix in {".gguf", ".safetensors", ".bin", ".pt"}:
        raise InputError(f"{source}: no such file or directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=HUB_FILES))
    except Exception as error:
        raise InputError(
            f"{source}: no such directory, and the hub did not give it ({first_line(error)})"
        ) from None


def _from_object(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, device: torch.device
) -> Loaded:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise InputError(f"{type(model).__name__} is no causal language model of transformers")
    if tokenizer is None:
        raise InputError("a model object needs its tokenizer: pass tokenizer=...")
    storage = model.dtype
    own = copy.deepcopy(model).to(device=device, dtype=compute_dtype(storage, device))
    own.eval()
    return Loaded(own, tokenizer, source=model.config._name_or_path or type(model).__name__, dtype=storage)


def _from_directory(path: Path, source: str, device: torch.device) -> Loaded:
    check_files(path, source)
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.json'}: not the configuration of a model")
    _check_causal(config, source)
    if config.get("quantization_config"):
        raise InputError(f"{source}: a quantised checkpoint cannot be cleaned; give the unquantised model")
    model = _pretrained(path, source, dtype="auto")
    loaded = _finish(
        model, load_tokenizer(path, source), source, device, tuple(sorted(path.glob("*.safetensors")))
    )
    return loaded.replace(model_dir=str(path.resolve()) if Path(source).expanduser().exists() else source)


def _from_adapter(path: Path, source: str, device: torch.device) -> Loaded:
    """Load base and adapter and merge them, so that what is cleaned is the model as it is used."""
    from peft import PeftModel

    weights = path / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(f"{source}: no adapter_model.safetensors (pickled adapters are not opened)")
    base_name = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise InputError(f"{source}: adapter_config.json names no base_model_name_or_path")
    if (locate(base_name) / "adapter_config.json").is_file():
        raise InputError(f"{source}: its base {base_name} is an adapter itself; merge that one first")
    base = load(base_name, device=str(device))
    try:
        merged = PeftModel.from_pretrained(base.model, str(path)).merge_and_unload()
    except Exception as error:
        raise InputError(
            f"{source}: the adapter does not fit its base {base_name} ({first_line(error)})"
        ) from None
    has_tokenizer = (path / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(path, source) if has_tokenizer else base.tokenizer
    files = (weights, *base.files)
    return base.replace(
        model=settle(merged, base.dtype),
        tokenizer=tokenizer,
        source=source,
        files=files,
        model_dir=None,
    )


def _from_gguf(path: Path, source: str, device: torch.device) -> Loaded:
    """Unpack a GGUF file. Its quantised weights have no half type of their own; bfloat16 holds them."""
    import torch
    from transformers import GgufConfig

    if path.suffix != ".gguf":
        raise InputError(f"{source}: a file that is no .gguf; give a model directory, hub name or .gguf file")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{source}: does not begin like a GGUF file; it is damaged or something else")
    extra = {"gguf_file": path.name}
    model = _pretrained(
        path.parent, source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **extra
    )
    return _finish(model, load_tokenizer(path.parent, source, **extra), source, device, (path,))


def _finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    device: torch.device,
    files: tuple[Path, ...],
) -> Loaded:
    storage = model.dtype
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(f"{source}: the tokenizer knows {len(tokenizer)} tokens, the model only {rows}")
    cast(model.to(device), compute_dtype(storage, device))
    model.eval()
    return Loaded(model, tokenizer, source, storage, files)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Change the type of the weights in place, not that of computed buffers (rotary frequencies stay float32)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def cast_all(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of the weights in place, and with them that of the statistics of batch norm."""
    from torch import nn

    cast(model, dtype)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean, module.running_var = (
                module.running_mean.to(dtype),
                module.running_var.to(dtype),
            )


def settle(model: PreTrainedModel, storage: torch.dtype) -> PreTrainedModel:
    """Round the weights to the type they are stored in, so that what is measured is what is saved."""
    import torch

    if storage != model.dtype:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(storage))
    return model


def check_files(path: Path, source: str) -> None:
    """Refuse pickles and shard names that leave the directory, before anything is opened."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        data = read_json(index)
        names = data.get("weight_map") if isinstance(data, dict) else None
        if not isinstance(names, dict):
            raise InputError(f"{index}: no weight_map in it; not an index of safetensors shards")
        bad = next((s for s in names.values() if not str(s).endswith(".safetensors")), None)
        if bad is not None:
            raise InputError(f"{index}: the shard {bad!r} is no safetensors file and is not opened")
        bad = next((s for s in names.values() if Path(s).name != s), None)
        if bad is not None:
            raise InputError(f"{index}: the shard {bad!r} lies outside of the directory")
    elif not (path / "model.safetensors").is_file():
        pickles = [p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
        hint = f"; {pickles[0]} is a pickle and is not opened, convert it to safetensors" if pickles else ""
        raise InputError(f"{source}: no model.safetensors in it{hint}")


def _check_causal(config: dict[str, Any], source: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    kind, named = str(config.get("model_type")), config.get("architectures") or []
    named = [str(n) for n in named] if isinstance(named, list) else [str(named)]
    causal = {n for v in KNOWN.values() for n in ([v] if isinstance(v, str) else v)}
    if kind not in KNOWN or (named and not causal & set(named)):
        what = ", ".join(map(str, named)) or f"model_type {kind!r}"
        raise InputError(f"{source}: no causal language model of transformers ({what})")


def _pretrained(path: Path, source: str, **kwargs: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **kwargs
        )
    except Exception as error:
        raise InputError(f"{source}: the weights cannot be loaded ({first_line(error)})") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{source}: {len(missing)} weights are missing from the checkpoint, first {missing[0]}"
        )
    return model


def load_tokenizer(path: Path, source: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer without running code of the checkpoint; raises InputError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **kwargs)
    except Exception as error:
        raise InputError(f"{source}: the tokenizer cannot be loaded ({first_line(error)})") from None
    if len(tokenizer) <= len(
        tokenizer.all_special_ids
    ):  # what transformers makes up where there are no files
        raise InputError(f"{source}: the tokenizer cannot be loaded (it knows no tokens)")
    return tokenizer
