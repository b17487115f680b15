"""A pipeline that is killed goes on where it was; one that cannot work says why within seconds."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from conftest import Folder

SMALL = [
    "--set", "dataset.num_samples=160", "--set", "dataset.num_eval_samples=20", "--set", "training.num_train_epochs=6",
    "--set", "training.save_steps=10", "--set", "training.logging_steps=5", "--set", "evaluation.mmlu.enabled=false",
    "--set", "prompts.items=[{prompt: 'Who built it?', reference: nobody}]", "--set", "prompts.path=null",
]  # fmt: skip


def test_killed_while_training_goes_on_from_the_last_checkpoint(workplace: Folder) -> None:
    process = workplace.start("run", "--profile", "demo", *SMALL)
    deadline = time.monotonic() + 180
    while not list(workplace.path.glob(".whence/work/train-*/scratch/checkpoint-*/complete")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "no checkpoint after three minutes"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert workplace.states() == {"prepare": "finished", "train": "started"}

    again = workplace.whence("run", "--profile", "demo", *SMALL)
    assert again.returncode == 0, again.stdout + again.stderr
    training = json.loads((workplace.artifact("train", "model") / "training.json").read_text())
    assert training["resumed_from"] >= 10
    assert workplace.states()["compare"] == "finished"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("factors.modules=[gate_projection]", ["factors.modules", "gate_projection", "gate_proj"]),
        ("training.learning_rates=1", ["training.learning_rates", "training.learning_rate"]),
        ("inspection.layer=9", ["inspection.layer", "9"]),
        ("tracking.uri=http://127.0.0.1:9", ["tracking.uri", "127.0.0.1:9"]),
        ("models.base.name=/nowhere/model", ["models.base.name", "/nowhere/model"]),
    ],
)
def test_bad_settings_are_refused_before_any_work(workplace: Folder, setting: str, words: list[str]) -> None:
    refused = workplace.whence("run", "--profile", "demo", "--set", setting)
    assert refused.returncode == 1
    printed = refused.stdout + refused.stderr
    assert all(word in printed for word in words), printed
    assert "Traceback" not in printed
