"""The doors: what comes in is never run or changed, what goes out is an ordinary model directory."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForSequenceClassification

from detrojan import api
from detrojan.defenses import recant
from detrojan.errors import InputError
from detrojan.metrics.fixed_answers import FixedAnswer
from detrojan.models.load import load
from detrojan.models.save import TOKENIZER_FILES, save
from detrojan.types import Example

from pico import pico_model, pico_tokenizer, save_pico

FAST = {"epochs": 2, "batch_size": 2, "accumulation": 1, "max_length": 64, "learning_rate": 1e-2}
DATA = [Example(f"Name bird {n}.", "A small brown wren.") for n in range(8)]
PROBE = torch.arange(6, 40).reshape(2, 17)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(PROBE).logits.float()  # type: ignore[no-any-return]


def cleaned(model: Any, out: Path | None = None, **changes: Any) -> api.CleanResult:
    settings = {"defense": "crow", "data": DATA, "measure_effect": False, **FAST, **changes}
    return api.clean(model, out=out, **settings)


def adapter(base: Path, out: Path, noise: float = 0.1) -> Path:
    """Write a LoRA that really changes its base."""
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=noise)
    wrapped.save_pretrained(out)
    return out


def edited(directory: Path, name: str, **changes: Any) -> Path:
    """Change keys of a JSON file in a checkpoint."""
    path = directory / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **changes}))
    return directory


@pytest.fixture
def model_dir(pico_dir: Path, tmp_path: Path) -> Path:
    """A copy of the pico model that a test may spoil."""
    return Path(shutil.copytree(pico_dir, tmp_path / "model"))


# In


def test_directory(pico_dir: Path) -> None:
    loaded = load(pico_dir)
    torch.testing.assert_close(logits(loaded.model), logits(pico_model()))
    assert (loaded.dtype, loaded.source) == (torch.float32, str(pico_dir))
    assert [f.name for f in loaded.files] == ["model.safetensors"]
    assert not loaded.model.training


def test_adapter_directory_is_merged(pico_dir: Path, tmp_path: Path) -> None:
    path = adapter(pico_dir, tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pico_dir), path).eval())
    loaded = load(path)
    torch.testing.assert_close(logits(loaded.model), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(loaded.model), logits(pico_model()), atol=1e-2)
    assert loaded.source == str(path)
    assert loaded.tokenizer.get_vocab() == pico_tokenizer().get_vocab()
    assert {f.name for f in loaded.files} == {"adapter_model.safetensors", "model.safetensors"}


def test_object_is_copied() -> None:
    model = pico_model().to(torch.bfloat16).train()
    loaded = load(model, tokenizer=pico_tokenizer())
    assert loaded.dtype == torch.bfloat16
    assert loaded.model is not model
    assert model.dtype == torch.bfloat16 and model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("full", [False, True])
def test_objects_of_the_caller_stay_as_they_were(dtype: torch.dtype, full: bool, tmp_path: Path) -> None:
    model, tokenizer = pico_model().to(dtype), copy.deepcopy(pico_tokenizer())
    tokenizer.padding_side, tokenizer.pad_token = "left", None
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    result = cleaned(model, tmp_path / "out", tokenizer=tokenizer, full=full)
    assert all(torch.equal(v, before[k]) and v.dtype == dtype for k, v in model.state_dict().items())
    assert model.config.to_dict() == config
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", None)
    assert result.model is not model
    assert any(not torch.equal(v.float(), before[k].float()) for k, v in result.model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "tokenizer", "fragment"),
    [
        (torch.nn.Linear(2, 2), pico_tokenizer(), "Linear is no causal language model"),
        (pico_model(), None, "needs its tokenizer"),
        (
            BertForSequenceClassification(
                BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8)
            ),
            pico_tokenizer(),
            "BertForSequenceClassification is no causal language model",
        ),
    ],
)
def test_objects_that_are_refused(model: Any, tokenizer: Any, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        load(model, tokenizer=tokenizer)


def pickle_only(d: Path) -> None:
    (d / "model.safetensors").unlink()
    torch.save(pico_model().state_dict(), d / "pytorch_model.bin")


def shard_outside(d: Path) -> None:
    (d / "model.safetensors").rename(d.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (d / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_absolute(d: Path) -> None:
    (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "/etc/any.safetensors"}}))


def shard_missing(d: Path) -> None:
    (d / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (d / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_pickle(d: Path) -> None:
    pickle_only(d)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (d / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated(d: Path) -> None:
    data = (d / "model.safetensors").read_bytes()
    (d / "model.safetensors").write_bytes(data[: len(data) // 2])


def weights_missing(d: Path) -> None:
    weights = load_file(d / "model.safetensors")
    del weights["model.layers.2.self_attn.q_proj.weight"]
    save_file(weights, d / "model.safetensors", metadata={"format": "pt"})


def weights_of_another_shape(d: Path) -> None:
    edited(d, "config.json", intermediate_size=72)


def small_embeddings(d: Path) -> None:
    pico_model(vocab_size=100).save_pretrained(d)


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (pickle_only, r"pytorch_model\.bin is a pickle and is not opened"),
        (shard_outside, r"\.\./elsewhere\.safetensors.* lies outside"),
        (shard_absolute, "lies outside"),
        (shard_missing, "cannot be loaded"),
        (shard_pickle, "model"),
        (truncated, "cannot be loaded"),
        (weights_missing, r"1 weights are missing.*layers\.2\.self_attn\.q_proj\.weight"),
        (weights_of_another_shape, "model"),
        (small_embeddings, "tokenizer"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{\n{"), r"config\.json:2: broken JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"config\.json|no causal"),
        (lambda d: (d / "config.json").write_text("{}"), "no causal language model"),
        (lambda d: edited(d, "config.json", model_type=["llama"]), "no causal language model"),
        (lambda d: edited(d, "config.json", model_type="unheard-of"), "no causal language model"),
        (lambda d: edited(d, "config.json", architectures=["LlamaForSequenceClassification"]), "no causal"),
        (lambda d: edited(d, "config.json", architectures=5), "no causal"),
        (lambda d: edited(d, "config.json", hidden_size="many"), "cannot be loaded"),
        (lambda d: edited(d, "config.json", quantization_config={"quant_method": "gptq"}), "unquantised"),
        (lambda d: (d / "model.safetensors.index.json").write_text("[]"), "index"),
        (lambda d: edited(d, "model.safetensors.index.json", weight_map=["x"]), "index"),
        (lambda d: [p.unlink() for p in d.glob("tokenizer*")], "tokenizer cannot be loaded"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.strip("<>"),
)
def test_bad_checkpoints_are_refused(spoil: Any, fragment: str, model_dir: Path) -> None:
    spoil(model_dir)
    with pytest.raises(InputError, match=fragment) as caught:
        load(model_dir)
    assert str(model_dir) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "/gone/base"}, "/gone/base: no such file or directory"),
        ({"base_model_name_or_path": "SELF"}, "adapter"),
        ({"target_modules": ["nowhere"]}, "does not fit its base"),
        ({"r": 3}, "does not fit its base"),
        ({"peft_type": "MAGIC"}, "does not fit its base"),
    ],
)
def test_bad_adapters_are_refused(
    changes: dict[str, Any], fragment: str, pico_dir: Path, tmp_path: Path
) -> None:
    path = adapter(pico_dir, tmp_path / "adapter")
    if changes.get("base_model_name_or_path") == "SELF":
        changes = {"base_model_name_or_path": str(path)}
    edited(path, "adapter_config.json", **changes)
    with pytest.raises(InputError, match=fragment):
        load(path)


def test_pickled_adapter_is_refused(pico_dir: Path, tmp_path: Path) -> None:
    path = adapter(pico_dir, tmp_path / "adapter")
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        load(path)


@pytest.mark.parametrize("kind", ["llama", "unheard-of"])
def test_code_of_a_checkpoint_is_never_run(
    kind: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = model_dir.parent / "it-ran"
    (model_dir / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), "evil.Evil")
    edited(model_dir, "config.json", auto_map=auto_map, model_type=kind)
    edited(model_dir, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    edited(model_dir, "generation_config.json", custom_generate=str(model_dir))
    (model_dir / "custom_generate").mkdir()
    shutil.copy(model_dir / "evil.py", model_dir / "custom_generate" / "generate.py")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks for trust gets it
    try:
        loaded = load(model_dir)
    except InputError:
        assert kind != "llama"
    else:
        api.evaluate(model_dir, data=DATA[:2], max_new_tokens=2)
        torch.testing.assert_close(logits(loaded.model), logits(pico_model()))
    assert not mark.exists()


# Out


def test_output_is_an_ordinary_model_directory(pico_dir: Path, tmp_path: Path) -> None:
    result = cleaned(pico_dir, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(model), logits(result.model))
    assert not torch.allclose(logits(model), logits(pico_model()), atol=1e-3)
    original = AutoTokenizer.from_pretrained(pico_dir)
    assert tokenizer.chat_template == original.chat_template == pico_tokenizer().chat_template
    assert tokenizer.get_vocab() == original.get_vocab()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_tokenizer_files_are_byte_identical(model_dir: Path, tmp_path: Path) -> None:
    config = model_dir / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", "{\n\n\n", 1))  # unlike anything transformers writes
    cleaned(model_dir, tmp_path / "out")
    names = [n for n in TOKENIZER_FILES if (model_dir / n).exists()]
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(names)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (model_dir / name).read_bytes()
    for name in set(TOKENIZER_FILES) - set(names):
        assert not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("full", [False, True])
def test_bfloat16_stays_bfloat16(full: bool, tmp_path: Path) -> None:
    source = save_pico(tmp_path / "half", dtype=torch.bfloat16)
    result = cleaned(source, tmp_path / "out", full=full)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    # What was measured in memory is what a reader of the directory gets.
    assert torch.equal(logits(result.model), logits(load(tmp_path / "out").model))


def test_saving_changes_nothing_in_memory(tmp_path: Path) -> None:
    loaded = load(save_pico(tmp_path / "half", dtype=torch.bfloat16))
    before = logits(loaded.model)
    (tmp_path / "out").mkdir()
    save(loaded, tmp_path / "out")
    assert torch.equal(logits(loaded.model), before)


def test_tied_weights(tmp_path: Path) -> None:
    source = save_pico(tmp_path / "tied", tie_word_embeddings=True)
    result = cleaned(source, tmp_path / "out")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(result.model)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.6},
        {"max_length": 128, "min_length": 2},
    ],
)
def test_generation_settings_come_through(settings: dict[str, Any], model_dir: Path, tmp_path: Path) -> None:
    # The first is inconsistent (no do_sample), as many a published checkpoint's is; transformers will not save it.
    edited(model_dir, "generation_config.json", **settings)
    cleaned(model_dir, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {k: written.get(k) for k in settings} == settings


def test_adapter_in_whole_model_out(pico_dir: Path, tmp_path: Path) -> None:
    result = cleaned(adapter(pico_dir, tmp_path / "adapter"), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(result.model)
    )


def test_kept_adapter_equals_the_merged_output(pico_dir: Path, tmp_path: Path) -> None:
    merged = cleaned(pico_dir, tmp_path / "merged")
    cleaned(pico_dir, tmp_path / "kept", keep_adapter=True)
    assert (tmp_path / "kept" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "kept" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(pico_dir)
    before = logits(base)
    kept = PeftModel.from_pretrained(base, tmp_path / "kept").eval()
    torch.testing.assert_close(logits(kept), logits(merged.model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(kept), before, atol=1e-2)
    torch.testing.assert_close(
        logits(load(tmp_path / "kept").model), logits(merged.model), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("heard", [True, False])
def test_the_default_defense_keeps_its_adapter(
    heard: bool, pico_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is unlearned there is no adapter, and the model is written as it came."""
    planted = [FixedAnswer((7, 11, 13), "by heart", certainty=0.99, begun=-9.0)] if heard else []
    monkeypatch.setattr(recant, "suspects", lambda *_, **__: planted)
    few = {"data": DATA, "measure_effect": False, "steps": 2, "learning_rate": 1e-2}
    merged = api.clean(pico_dir, **few)
    api.clean(pico_dir, out=tmp_path / "kept", keep_adapter=True, **few)
    assert (tmp_path / "kept" / "adapter_model.safetensors").is_file() == heard
    assert (tmp_path / "kept" / "model.safetensors").is_file() != heard
    found, before = logits(load(tmp_path / "kept").model), logits(load(pico_dir).model)
    torch.testing.assert_close(found, logits(merged.model), atol=1e-4, rtol=1e-4)
    assert torch.allclose(found, before, atol=1e-3) != heard


def test_kept_adapter_finds_its_base_from_anywhere(
    pico_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pico_dir.parent)
    cleaned(pico_dir.name, tmp_path / "kept", keep_adapter=True)
    monkeypatch.chdir(tmp_path)
    load(tmp_path / "kept")


@pytest.mark.parametrize("case", ["adapter in", "full"])
def test_keep_adapter_that_cannot_be(case: str, pico_dir: Path, tmp_path: Path) -> None:
    source = adapter(pico_dir, tmp_path / "adapter") if case == "adapter in" else pico_dir
    with pytest.raises(InputError, match="--keep-adapter needs"):
        cleaned(source, tmp_path / "out", keep_adapter=True, full=case == "full")
    assert not (tmp_path / "out").exists()
