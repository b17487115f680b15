"""Two processes on the CPU give what one gives; where one is killed the work fails, and goes on when it is repeated."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ranks_helpers import make_inputs, settings, tuning
from safetensors.torch import load_file

from whence import ranks
from whence.errors import ModelError, ProcessError
from whence.influence.factors import fit_factors, load_factors
from whence.influence.fit import Factors, Fit
from whence.influence.results import Scores
from whence.influence.scores import score
from whence.models.trained import TrainedModel
from whence.training import TrainingResult


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and data."""
    folder = tmp_path_factory.mktemp("made")
    make_inputs(folder)
    return folder


def run(made: Path, output: Path, processes: int, **more: Any) -> tuple[TrainingResult, dict[str, torch.Tensor]]:
    result = tuning(made, output, general__processes=processes, **more).run(lambda step, metrics: None)
    return result, load_file(output / "model" / "model.safetensors")


def started() -> list[psutil.Process]:
    """The processes beside this one, in the order of their start."""
    children = psutil.Process().children()
    return sorted((child for child in children if "spawn_main" in " ".join(child.cmdline())), key=lambda one: one.pid)


def assert_equal(made: Path, ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Up to fp32 rounding, of which AdamW makes more where a gradient is next to nothing."""
    began = load_file(made / "base" / "model.safetensors")
    assert ours.keys() == expected.keys()
    moved = sum(float((expected[name] - began[name]).square().sum()) for name in expected) ** 0.5
    apart = sum(float((expected[name] - ours[name]).square().sum()) for name in expected) ** 0.5
    assert moved > 1
    assert apart < 1e-4 * moved


@pytest.mark.parametrize(
    "divided",
    [
        {"training__dataloader_drop_last": False},
        {"training__fsdp": True},
        {"training__fsdp": True, "training__gradient_checkpointing": True},
    ],
    ids=["ddp, with half a batch", "fsdp", "fsdp, checkpointing"],
)
def test_two_ranks_train_the_weights_of_one_process_with_the_same_global_batch(
    made: Path, tmp_path: Path, divided: dict[str, Any]
) -> None:
    two, weights = run(made, tmp_path / "two", 2, **divided)
    one, expected = run(made, tmp_path / "one", 1, **divided, training__per_device_train_batch_size=4)
    assert_equal(made, weights, expected)
    assert two.metrics["steps"] == one.metrics["steps"]
    losses = [[entry["loss"] for entry in result.history if "loss" in entry] for result in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_rank_that_is_killed_fails_the_training_which_goes_on_from_its_checkpoint(made: Path, tmp_path: Path) -> None:
    job = tuning(made, tmp_path, general__processes=2)

    def kill_the_second(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            started()[1].send_signal(signal.SIGKILL)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(ProcessError, match=r"^rank 1 of 2 ended with SIGKILL.*; what is finished is kept"):
        job.run(kill_the_second)
    assert {number: signal.getsignal(number) for number in before} == before
    assert not started()
    result = job.run(lambda step, metrics: None)
    assert result.resumed_from in (2, 4)
    _, expected = run(made, tmp_path / "one", 1, training__per_device_train_batch_size=4)
    assert_equal(made, load_file(tmp_path / "model" / "model.safetensors"), expected)


def test_a_rank_that_is_killed_while_it_reports_holds_nobody_up() -> None:
    told, raised = list[Any](), dict[int, BaseException]()
    launch = ranks._here(2)
    with ranks._reports(launch, lambda *report: told.append(report), raised) as (first, second):
        first.send((ranks.LOG, (1, {"loss": 0.5})))
        os.write(second.fileno(), b"\0\0")  # half the length of what was to come
        first.send((0, ValueError("wrong")))
    assert told == [(1, {"loss": 0.5})]
    assert str(raised[0]) == "wrong"


def test_a_checkpoint_of_another_number_of_ranks_is_not_gone_on_from(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(made, tmp_path, 2)
    result, weights = run(made, tmp_path, 1)
    assert result.resumed_from is None
    assert "it is of 2 processes, and 1 train now" in caplog.text
    _, expected = run(made, tmp_path / "alone", 1)
    assert_equal(made, weights, expected)


def test_what_a_rank_refuses_is_the_error(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"training loss became (nan|inf)"):
        run(made, tmp_path, 2, training__learning_rate=1e20, training__max_grad_norm=0.0)
    assert "Traceback" not in capfd.readouterr().err
    assert "WORLD_SIZE" not in os.environ


def test_two_processes_fit_and_score_what_one_does_and_keep_what_is_done_when_one_is_killed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = {"factors__batch_size": 2, "scores__train_batch_size": 2, "index__dimensions": 64}
    parts = {"factors__data_partitions": 3, "scores__data_partitions": 3}

    def fit_and_score(processes: int, folder: Path) -> tuple[Factors, Scores]:
        config = settings(general__processes=processes, **batches, **parts)
        with TrainedModel.load_team(made / "base", made / "data", config) as (trained, team):
            fit_factors(trained, folder / "factors", team)
            scores = score(trained, folder / "factors", trained.frame.head(3), folder / "scores", team=team)
            return load_factors(folder / "factors"), scores

    covariances = Fit.covariances

    def killing(self: Fit, data_parts: Sequence[int]) -> None:
        for process in started():
            process.kill()
        covariances(self, data_parts)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "covariances", killing)
        with pytest.raises(ProcessError, match=r"was killed.*what is finished is kept"):
            fit_and_score(2, tmp_path / "two")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("covariance_data_partition*")}
    assert kept

    def watching(self: Fit, data_parts: Sequence[int]) -> None:
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
        covariances(self, data_parts)

    monkeypatch.setattr(Fit, "covariances", watching)
    factors, scores = fit_and_score(2, tmp_path / "two")
    monkeypatch.setattr(Fit, "covariances", covariances)
    expected, scores_of_one = fit_and_score(1, tmp_path / "one")
    for name, tensors in expected.items():
        for module, tensor in tensors.items():
            torch.testing.assert_close(factors[name][module], tensor, rtol=1e-6, atol=1e-8)
    assert scores.matrix == pytest.approx(scores_of_one.matrix, rel=1e-6, abs=1e-8)
    assert scores.self_influence == pytest.approx(scores_of_one.self_influence, rel=1e-6)
    assert (scores.folder / "codes.safetensors").read_bytes() == (
        scores_of_one.folder / "codes.safetensors"
    ).read_bytes()
