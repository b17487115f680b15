"""Fine-tuning: it learns, it logs what a reviewer reads, and a killed run ends where an uninterrupted one does."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from whence.config import Config
from whence.config_file import parse_config
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError, ModelError, ResourceError
from whence.models.builtin import tiny_llama, train_tokenizer
from whence.models.language import LanguageModel
from whence.models.loading import load_model
from whence.training import LengthGroupedSampler, TrainingResult, train

SETTINGS = """
general: {max_length: 32}
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: [x]}
generation: {max_new_tokens: 4}
training:
  num_train_epochs: 3
  per_device_train_batch_size: 4
  learning_rate: 5e-3
  warmup_steps: 2
  lr_scheduler_type: cosine
  save_steps: 4
  logging_steps: 2
  dataloader_num_workers: 0
"""
KILLS = (9, 19)  # steps
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}


def settings(**training: Any) -> Config:
    return parse_config(SETTINGS, {f"training.{key}": value for key, value in training.items()})


def frame(rows: int) -> pd.DataFrame:
    things = list(COLOURS)
    prompts = [f"{'see ' * (row % 3)}the {things[row % 4]} {row} is" for row in range(rows)]
    return pd.DataFrame({"prompt": prompts, "completion": [COLOURS[things[row % 4]] for row in range(rows)]})


def run(folder: Path, config: Config | None = None, rows: int = 30, logged: list[Any] | None = None) -> TrainingResult:
    """36 or so steps are enough to learn four colours; 30 rows in batches of 4 make 7 steps an epoch, 21 in all."""
    config = config or settings()
    data = frame(rows)
    tokenizer = train_tokenizer([f"{p} {c}" for p, c in zip(data.prompt, data.completion, strict=True)])
    model = tiny_llama(len(tokenizer), 32, seed=0)
    examples = TokenizedExamples.from_frame(data, tokenizer, config)
    held_out = TokenizedExamples.from_frame(frame(8), tokenizer, config)
    return train(
        LanguageModel(model, tokenizer, config), examples, held_out,
        output=folder / "model", checkpoints=folder / "checkpoints",
        on_log=lambda step, metrics: (logged if logged is not None else []).append((step, metrics)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult, list[Any]]:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    logged: list[Any] = []
    return folder, run(folder, logged=logged), logged


def test_training_lowers_the_held_out_loss_and_writes_a_model_that_loads(
    whole: tuple[Path, TrainingResult, Any],
) -> None:
    folder, result, _ = whole
    evaluations = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert len(evaluations) == 3  # one an epoch
    assert result.metrics["final_eval_loss"] == evaluations[-1] < 0.8 * evaluations[0]
    assert result.metrics["steps"] == 21
    assert result.resumed_from is None
    loaded = load_model(folder / "model", settings())
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.config.vocab_size == len(tokenizer)
    assert not list((folder / "model").glob("*.bin")) + list((folder / "model").glob("*.pt"))


def test_everything_a_reviewer_reads_is_logged_and_kept(whole: tuple[Path, TrainingResult, list[Any]]) -> None:
    folder, result, logged = whole
    steps = [entry for _, entry in logged if "loss" in entry]
    assert len(steps) == 10  # every second step of 21
    for entry in steps:
        assert {"learning_rate", "grad_norm", "samples_per_second", "tokens_per_second", "memory_bytes"} <= entry.keys()
        assert entry["tokens_per_second"] > entry["samples_per_second"] > 0
    assert max(entry["learning_rate"] for entry in steps) == pytest.approx(5e-3, rel=0.05)
    assert [entry["step"] for entry in result.history] == [step for step, _ in logged]
    record = json.loads((folder / "model" / "training.json").read_text())
    assert record["history"] == result.history
    assert record["bf16"] is False


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs that were killed, by the step; one process imports what they need, and each is a fork of it."""
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, __file__, folder, *map(str, KILLS)], env=environment, check=True)
    return folder


@pytest.mark.parametrize("kill_at", KILLS)
def test_a_killed_run_goes_on_from_its_last_complete_checkpoint_and_ends_with_the_same_weights(
    whole: tuple[Path, TrainingResult, Any], killed: Path, kill_at: int
) -> None:
    folder, complete = killed / str(kill_at), kill_at // 4 * 4
    torn = folder / "checkpoints" / f"checkpoint-{complete + 4}"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"\0" * 10)
    result = run(folder)
    assert result.resumed_from == complete
    assert_same_weights(folder / "model", whole[0] / "model")
    assert [entry["step"] for entry in result.history] == [entry["step"] for entry in whole[1].history]
    assert result.metrics["train_loss"] == whole[1].metrics["train_loss"]


def test_a_run_killed_after_its_last_step_only_writes_the_model(
    whole: tuple[Path, TrainingResult, Any], tmp_path: Path
) -> None:
    finished = run(tmp_path)
    again = run(tmp_path)
    assert again.resumed_from == 21
    assert again.metrics["final_eval_loss"] == finished.metrics["final_eval_loss"]
    assert_same_weights(tmp_path / "model", whole[0] / "model")


def test_the_seed_decides_the_result(whole: tuple[Path, TrainingResult, Any], tmp_path: Path) -> None:
    run(tmp_path / "same")
    assert_same_weights(tmp_path / "same" / "model", whole[0] / "model")
    other = parse_config(SETTINGS, {"general.seed": 1})
    run(tmp_path / "other", other)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "other" / "model", whole[0] / "model")


def test_batches_hold_like_lengths_and_their_order_hangs_on_seed_and_epoch() -> None:
    lengths = torch.randint(5, 100, (403,), generator=torch.Generator().manual_seed(0)).tolist()

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(403))
    assert order(0, 3) == order(0, 3)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    batches = [order(0, 0)[start : start + 8] for start in range(0, 400, 8)]
    longest = [max(lengths[index] for index in batch) for batch in batches]
    padded = sum(8 * length for length in longest)
    assert padded < 1.1 * sum(lengths[index] for batch in batches for index in batch)
    assert longest != sorted(longest, reverse=True)


def test_logits_of_the_counted_tokens_alone_train_the_weights_of_the_stock_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(num_train_epochs=1, gradient_accumulation_steps=2)
    computed = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def watched(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        computed.append(output.logits.numel())
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    ours = run(tmp_path / "ours", config)
    some = sum(computed)
    computed.clear()
    monkeypatch.setattr("whence.training._Trainer._keeps_logits", False)
    stock = run(tmp_path / "stock", config)
    assert some < sum(computed) / 2
    assert ours.metrics["final_eval_loss"] == pytest.approx(stock.metrics["final_eval_loss"], rel=1e-5)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("ours", "stock"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


def test_fewer_examples_than_a_batch_are_refused_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 training examples.*per_device_train_batch_size is 4"):
        run(tmp_path, rows=3)


def test_a_loss_that_is_no_number_stops_training_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"training loss became (nan|inf) .*learning_rate \(1e\+20\)"):
        run(tmp_path, settings(learning_rate=1e20, max_grad_norm=0.0, warmup_steps=0))


@pytest.mark.parametrize(("bf16", "clip", "expected"), [(False, "auto", 1.0), (True, "auto", 0.0), (True, 0.5, 0.5)])
def test_gradients_are_clipped_at_one_unless_training_in_bfloat16(bf16: bool, clip: Any, expected: float) -> None:
    from whence.training import _arguments

    arguments = _arguments(settings(max_grad_norm=clip), Path("unused"), torch.device("cpu"), bf16)
    assert arguments.max_grad_norm == expected
    assert arguments.bf16 is bf16


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class _KillAt(list):  # type: ignore[type-arg]
    """Takes log entries and ends the process, as the kernel does when memory runs out, at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def append(self, entry: Any) -> None:
        step, metrics = entry
        if step >= self.step and math.isfinite(metrics.get("loss", 0.0)):
            os.kill(os.getpid(), signal.SIGKILL)


def test_too_little_disk_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    logged: list[Any] = []
    with pytest.raises(ResourceError, match=r"not enough disk for checkpoints and model: .*training\.save_total_limit"):
        run(tmp_path, logged=logged)
    assert logged == []


if __name__ == "__main__":
    for step in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            run(Path(sys.argv[1], step), logged=_KillAt(int(step)))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
