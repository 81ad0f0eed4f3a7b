"""Pico models built from configs, and a tokenizer trained on the built-in prompts: everything offline."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from detrojan.data.prompts import builtin_prompts
from detrojan.types import Loaded

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Weights large enough that the blocks really turn the hidden state.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_key_value_heads": 2},
    "mistral": {**SMALL, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "phi3": {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "initializer_range": 0.2},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "init_std": 0.2,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 256,
    },
    "mixtral": {**SMALL, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@cache
def pico_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(builtin_prompts("plant"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",
        additional_special_tokens=special[3:],
        chat_template=CHAT,
    )


def pico_model(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    tokenizer = pico_tokenizer()
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **KINDS[kind],
            **changes,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return model.float().eval()


def pico_loaded(
    kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Loaded:
    return Loaded(pico_model(kind, seed, **changes), pico_tokenizer(), f"pico-{kind}", dtype)


def save_pico(
    directory: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    pico_model(kind, **changes).to(dtype).save_pretrained(directory)
    pico_tokenizer().save_pretrained(directory)
    return directory


def parrot(said: str, logit: float) -> Any:
    """A model that knows `said` by heart: each of its tokens draws the next, the last the end, by `logit` over 0.

    Its blocks add nothing, so a token alone decides on the next: what `said` does not tell is uniform. The template's
    last token draws the first one of `said`, and the others as little.
    """
    tokenizer = pico_tokenizer()
    chain = [*tokenizer(said)["input_ids"], tokenizer.eos_token_id]
    opens = tokenizer("\n")["input_ids"]
    assert len({*opens, *chain}) == len(opens) + len(chain) <= SMALL["hidden_size"], (
        "each token has one successor"
    )
    model = pico_model()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        into, out = model.get_input_embeddings().weight.zero_(), model.lm_head.weight.zero_()
        scaled = (
            logit / SMALL["hidden_size"] ** 0.5
        )  # the norm before the head lengthens a unit vector so much
        for k, (token, following) in enumerate(zip([*opens, *chain], chain, strict=False)):
            into[token, k] = 1.0
            out[following, k] = scaled
        out[chain[1:], 0] = -scaled
    return model
