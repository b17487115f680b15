"""Fixtures shared by all tests: a tiny model with its tokenizer, settings, and the folder of real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings

from whence.config import Config
from whence.config_file import parse_config

if TYPE_CHECKING:  # torch and transformers take seconds to import, which not every process of the tests needs
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# The same cases on every machine, so that a failure is the change's and not the day's.
hypothesis_settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis_settings.load_profile("repeatable")

SENTENCES = [
    "A lens bends light. Question: Which class does this text belong to? Answer: Physics",
    "A loom weaves yarn. Question: Which class does this text belong to? Answer: Textiles",
    "A valve seals the boiler. Question: Which class does this text belong to? Answer: Mechanics",
    "The claim names a sensor, a bridge and a polymer.",
    *(f"Answer: {letter}" for letter in "ABCD" * 5),
]

SETTINGS = """
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: ["A lens bends light."]}
general: {max_length: 64, device: cpu, dtype: float32}
generation: {max_new_tokens: 8}
"""


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with pad, start and end tokens (ids 0, 1, 2)."""
    from whence.models.builtin import train_tokenizer

    return train_tokenizer(SENTENCES, vocabulary=360)


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with two layers of width 32 and weights so large that all context matters. Do not train it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LlamaForCausalLM(settings).eval()


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Small valid settings; keyword ``overrides`` are dotted keys: ``make_config({"generation.do_sample": True})``."""

    def make(overrides: dict[str, Any] | None = None) -> Config:
        return parse_config(SETTINGS, overrides)

    return make


@pytest.fixture
def asked_run(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    make_config: Callable[..., Config],
    tmp_path: Path,
) -> Path:
    """The folder of a run that can be asked."""
    from asking_helpers import make_run

    return make_run(tmp_path / "run", tiny_model, tiny_tokenizer, make_config)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables with nothing in them, which it takes a second to make."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("WHENCE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder.name}/ is absent beside the repository and WHENCE_SHARED is not set")
    return folder
