"""Retrainings in processes of their own: two at a time, the same as one by one, and not done again when one fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from whence.config_file import parse_config
from whence.data.tokenization import TokenizedExamples
from whence.errors import ModelError
from whence.models.builtin import tiny_llama, train_tokenizer
from whence.validation.counterfactual import Change
from whence.validation.retraining import Retrainer

SETTINGS = """
general: {max_length: 32, device: cpu}
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: [x]}
generation: {max_new_tokens: 4}
training: {num_train_epochs: 2, per_device_train_batch_size: 4, learning_rate: 5e-3, dataloader_num_workers: 0}
"""


@pytest.fixture
def retrainer(tmp_path):
    config = parse_config(SETTINGS)
    rows = pd.DataFrame({"prompt": [f"the sky {number} is" for number in range(12)], "completion": "blue"})
    tokenizer = train_tokenizer([f"{p} blue" for p in rows["prompt"]] * 3, vocabulary=400)
    tiny_llama(len(tokenizer), 32, seed=0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    examples = TokenizedExamples.from_frame(rows, tokenizer, config)
    return Retrainer(
        tmp_path / "base", examples, examples.subset([0, 1]), config, tmp_path / "work", tmp_path, processes=2
    )


def test_two_at_a_time_give_what_one_by_one_gives(retrainer, tmp_path):
    changes = [Change(0), Change(0, without=(3,)), Change(1, only=(0, 2, 4, 6, 8, 10))]
    found = retrainer.outcomes(changes)
    alone = replace(retrainer, folder=tmp_path / "alone")
    alone.folder.mkdir()
    for change in changes:
        alone._one(change)
    for change, outcome in alone.outcomes(changes).items():
        np.testing.assert_allclose(found[change], outcome, rtol=1e-3, atol=1e-4)
    assert {file.suffix for file in retrainer.folder.iterdir()} == {".json"}, "nothing but results is left"


def test_what_fails_is_said_and_what_was_finished_is_kept(retrainer):
    retrainer.folder.mkdir()
    retrainer._one(Change(0))
    settings = {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 1}
    wild = retrainer.config.training.model_copy(update=settings)
    broken = replace(retrainer, config=retrainer.config.model_copy(update={"training": wild}))
    with pytest.raises(ModelError, match="the training loss became"):
        broken.outcomes([Change(2)])
    assert len(list(retrainer.folder.iterdir())) == 1
