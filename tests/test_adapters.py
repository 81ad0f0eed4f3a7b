"""Two LoRAs as one adapter: the same model as both merged, one after the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from detrojan.models.adapters import joined

from pico import pico_model

KINDS = ("llama", "gpt2", "mixtral")


def tuned(model: Any, rank: int, alpha: int, seed: int) -> Any:
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    made = get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, weight in made.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.2)
    return made.eval()


def said(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_the_two_together_are_one(kind: str, tmp_path: Any) -> None:
    base = pico_model(kind)
    first = tuned(copy.deepcopy(base), 4, 8, seed=0)
    between = copy.deepcopy(first).merge_and_unload()
    second = tuned(copy.deepcopy(between), 2, 6, seed=1)
    expected = said(copy.deepcopy(second).merge_and_unload())
    assert not torch.allclose(expected, said(between), atol=1e-2)
    one = joined(first, second)
    torch.testing.assert_close(said(one), expected, atol=1e-4, rtol=1e-4)
    one.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    torch.testing.assert_close(said(again.eval()), expected, atol=1e-4, rtol=1e-4)


def test_by_hand() -> None:
    base = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    torch.nn.init.constant_(base[0].weight, 1.0)

    def lora(model: Any, down: float, up: float, alpha: int) -> Any:
        made = get_peft_model(model, LoraConfig(r=1, lora_alpha=alpha, target_modules=["0"]))
        layer = made.base_model.model[0]
        torch.nn.init.constant_(layer.lora_A["default"].weight, down)
        torch.nn.init.constant_(layer.lora_B["default"].weight, up)
        return made

    first = lora(copy.deepcopy(base), 2.0, 3.0, alpha=2)  # + 2 * 3 * 2
    second = lora(copy.deepcopy(first).merge_and_unload(), 5.0, 1.0, alpha=4)  # + 4 * 1 * 5
    assert float(joined(first, second)(torch.ones(1, 1))) == 1 + 12 + 20
