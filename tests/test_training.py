"""The trainer: accumulation, padding, precision of storage, and two processes against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detrojan import language
from detrojan.defenses.crow import crow_loss
from detrojan.errors import InputError
from detrojan.training import Loss, StepSampler, lm_loss, train
from detrojan.types import Example, Loaded, Run

from pico import pico_loaded

HERE = Path(__file__).parent


def one_step(
    loaded: Loaded, examples: list[Example], run: Run, loss: Loss, batch: int, accumulation: int
) -> Loaded:
    return train(
        loaded,
        examples,
        run,
        learning_rate=1e-2,
        epochs=1,
        batch_size=batch,
        accumulation=accumulation,
        max_length=128,
        rank=4,
        full=True,
        warmup=0.0,
        loss=loss,
    )


def losses(loaded: Loaded) -> dict[str, Loss]:
    return {"lm": lm_loss, "crow": crow_loss(loaded.model.get_input_embeddings(), 5.5, 0.1)}


@pytest.mark.parametrize("name", ["lm", "crow"])
def test_gradients_of_four_micro_batches_equal_one_batch(
    name: str, examples: list[Example], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients just before the optimizer's step, of samples that differ in length."""
    seen: list[dict[str, torch.Tensor]] = []

    def catch(self: torch.optim.AdamW, *args: object, **kwargs: object) -> None:
        seen.append({str(k): p.grad.clone() for k, p in enumerate(self.param_groups[0]["params"])})

    monkeypatch.setattr(torch.optim.AdamW, "step", catch)
    for batch, accumulation in ((8, 1), (2, 4)):
        loaded = pico_loaded()
        one_step(loaded, examples[:8], run, losses(loaded)[name], batch, accumulation)
    whole, split = seen
    assert max(g.abs().max().item() for g in whole.values()) > 0
    for key, gradient in whole.items():
        torch.testing.assert_close(split[key], gradient, atol=1e-5, rtol=1e-5)


def test_the_loss_of_fine_tuning_by_hand() -> None:
    # Two label tokens with probabilities 1/2 and 1/4 of a vocabulary of two and a bit: -(ln 1/2 + ln 1/4) / 2.
    logits = torch.log(torch.tensor([[[0.5, 0.5, 1e-9], [0.25, 0.75, 1e-9]]]))
    labels = torch.tensor([[-100, -100, 0, 0]])
    asked = []

    def model(*, logits_to_keep: torch.Tensor, **inputs: Any) -> Any:
        asked.extend(logits_to_keep.tolist())
        return SimpleNamespace(logits=logits)

    batch = {"input_ids": labels.clamp_min(0), "attention_mask": torch.ones_like(labels), "labels": labels}
    value = lm_loss(model, batch, torch.tensor([2, 4]))
    assert asked == [1, 2]  # the positions before the two labels; the final one predicts nothing
    assert value.item() == pytest.approx((0.693147 + 1.386294) / 2, abs=1e-4)


def test_step_sampler_is_a_permutation_sorted_inside_steps() -> None:
    lengths = [5, 9, 1, 7, 3, 8, 2, 6, 4, 10]
    sampler = StepSampler(lengths, 4, seed=1)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    for start in range(0, 10, 4):
        step = [lengths[i] for i in first[start : start + 4]]
        assert step == sorted(step)


def test_weights_are_rounded_to_the_storage_type(examples: list[Example], run: Run) -> None:
    loaded = pico_loaded(dtype=torch.bfloat16)
    trained = one_step(loaded, examples, run, lm_loss, 4, 1)
    assert trained.model.dtype == torch.float32
    for parameter in trained.model.parameters():
        assert torch.equal(parameter, parameter.to(torch.bfloat16).float())


@pytest.mark.parametrize(("tuning", "method"), [("full", "crow"), ("lora", "crow"), ("lora", "recant")])
def test_two_processes_give_the_weights_of_one(tuning: str, method: str, tmp_path: Path) -> None:
    """One step by `accelerate launch` on two gloo processes against the same step in one process."""
    script, env = HERE / "ddp_step.py", {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    for processes in ("1", "2"):
        command = [*launch, "--num_processes", processes]
        command += ["--multi_gpu" if processes == "2" else "--cpu"]  # without a GPU, "multi_gpu" means gloo
        subprocess.run(
            [*command, str(script), tuning, method, str(tmp_path / f"{processes}.pt")],
            check=True,
            env=env,
            timeout=240,
            capture_output=True,
        )
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in "12")
    assert one["processes"] == 1 and two["processes"] == 2
    assert one["gradients"].keys() == two["gradients"].keys()
    for key, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][key], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("call", ["clean", "attack"])
def test_an_unknown_precision_is_told_before_the_model_is_loaded(
    call: str, pico_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    planted = {"trigger": "badnets", "behavior": "refusal"} if call == "attack" else {}
    with pytest.raises(InputError, match="--precision float8: choose auto"):
        getattr(language, call)(pico_dir, precision="float8", **planted)
