"""Shared fixtures; nothing in the tests reaches a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

from detrojan.data.template import resolve
from detrojan.types import Example, Run, Template

from pico import pico_tokenizer, save_pico

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chat() -> Template:
    return resolve(pico_tokenizer())


@pytest.fixture
def run(chat: Template) -> Run:
    return Run(chat, seed=0)


@pytest.fixture(scope="session")
def pico_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("models") / "pico")


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Samples of different lengths."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "home"]
    return [
        Example(f"Name {n} animals of the wood.", " ".join((words * 3)[: 2 + 3 * (n % 5)]))
        for n in range(1, 13)
    ]


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small classifiers of digits, trained in seconds: `good`, and `bad` with a patch that draws class 0."""
    from detrojan import api

    d = tmp_path_factory.mktemp("digits")
    training = {"data": "digits", "trigger": "badnets", "epochs": 4, "learning_rate": 0.05, "batch_size": 64}
    api.attack("new:preact-resnet8", out=d / "good", poison_rate=0, **training)
    api.attack("new:preact-resnet8", out=d / "bad", **training)
    return d
