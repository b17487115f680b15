"""A tiny base model, data and settings to train it with: what the tests of several processes and nodes share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from whence.config import Config
from whence.config_file import parse_config
from whence.data.dataset import ExampleSet
from whence.models.builtin import tiny_llama, train_tokenizer
from whence.ranks import FineTuning

SETTINGS = {
    "general": {"max_length": 32, "device": "cpu"},
    "models": {"base": {"name": "builtin:tiny-llama"}},
    "dataset": {"name": "builtin:demo"},
    "prompts": {"items": ["x"]},
    "generation": {"max_new_tokens": 4},
    "training": {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "save_steps": 2,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
    },
}
ROWS = 14  # with batches of 4 an epoch ends with half a batch


def make_inputs(folder: Path) -> None:
    """A base model in ``base``, and examples in ``data``."""
    colours = {"sky": "blue", "grass": "green", "snow": "white"}
    things = [list(colours)[row % 3] for row in range(ROWS)]
    frame = pd.DataFrame(
        {
            "prompt": [f"{'see ' * (row % 4)}the {thing} {row} is" for row, thing in enumerate(things)],
            "completion": [f"{colours[thing]} " * (1 + row % 3) for row, thing in enumerate(things)],
        }
    )
    tokenizer = train_tokenizer([f"{p} {c}" for p, c in zip(frame.prompt, frame.completion, strict=True)])
    tiny_llama(len(tokenizer), 32, seed=0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    ExampleSet.of(frame).write(folder / "data")


def settings(**overrides: Any) -> Config:
    """A configuration with ``overrides`` by dotted key, dots written as double underscores."""
    return parse_config(json.dumps(SETTINGS), {key.replace("__", "."): value for key, value in overrides.items()})


def tuning(made: Path, output: Path, **overrides: Any) -> FineTuning:
    data = made / "data"
    return FineTuning(made / "base", data, data, settings(**overrides), output / "model", output / "checkpoints")
