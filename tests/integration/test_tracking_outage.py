"""A tracking server that is killed, hangs or refuses costs no results: nothing is lost and nothing recorded twice."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import MlflowProcess, running

from whence.config import Config
from whence.errors import TrackingError
from whence.tracking import StageRun, check_tracking, stage_run, upload_spool
from whence.tracking import run as tracking_run
from whence.tracking.server import ENDS_WITH_TAG


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowProcess]:
    with running(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def server(process: MlflowProcess) -> Iterator[MlflowProcess]:
    """The server, running again after a test that killed it."""
    yield process
    process.signal(signal.SIGCONT)
    if not process.alive:
        process.start()


@pytest.fixture
def config(
    server: MlflowProcess,
    make_config: Callable[..., Config],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-1")
    name = request.node.name
    return make_config({"tracking.uri": server.uri, "tracking.experiment": name, "tracking.retry_seconds": 0.5})


def runs_of(client: MlflowClient, config: Config) -> dict[str, Run]:
    """The experiment's runs by stage; a stage that was recorded twice fails."""
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    stages = {run.data.tags["whence.stage"]: run for run in runs}
    assert len(stages) == len(runs)
    return stages


def losses(client: MlflowClient, run: Run) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]


def artifacts(client: MlflowClient, run: Run, folder: str | None = None) -> list[str]:
    return sorted(file.path for file in client.list_artifacts(run.info.run_id, folder))


def log_everything(run: StageRun, folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (folder / "plot.png").write_bytes(b"png")
    run.log_params({"seed": 1})
    run.log_artifact(folder / "plot.png", "plots")
    run.log_table(pd.DataFrame({"a": [1]}), "answers.json")
    run.log_dataset("train_data", "f" * 64, "builtin:demo", 7, context="train")
    run.log_model_version(model, folder.name, {})
    run.log_parent_metrics({"accuracy": 0.9})
    run.set_parent_tags({ENDS_WITH_TAG: "score"})


def test_a_server_that_goes_down_gets_the_rest_of_the_stage_when_the_next_one_starts(
    server: MlflowProcess, config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_run(config, "train") as run:
        run.log_metrics({"loss": 3.0}, step=1)
        server.kill()
        run.log_metrics({"loss": 2.0}, step=2)
        log_everything(run, tmp_path)
        (tmp_path / "plot.png").unlink()
        run.log_metrics({"loss": 1.0}, step=3)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.split(" (")[0] for text in warnings if "does not answer" in text] == [
        f"MLflow at {server.uri} does not answer"
    ], "said once, not for every call"
    assert f"kept in {tmp_path / '.whence' / 'spool'}" in warnings[-1]

    server.start()
    with stage_run(config, "score"):
        pass
    assert not list((tmp_path / ".whence" / "spool").iterdir())
    assert upload_spool(config) == 0

    client = server.client
    runs = runs_of(client, config)
    assert set(runs) == {"pipeline", "train", "score"}
    train = runs["train"]
    assert train.info.status == "FINISHED"
    assert train.data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
    assert losses(client, train) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert train.data.params == {"train.seed": "1"}
    assert artifacts(client, train) == ["answers.json", "plots"]
    assert artifacts(client, train, "plots") == ["plots/plot.png"]
    assert len(train.inputs.dataset_inputs) == 1
    assert len(train.outputs.model_outputs) == 1
    assert len(client.search_model_versions(f"name = '{tmp_path.name}'")) == 1
    assert runs["pipeline"].data.metrics == {"accuracy": 0.9}
    assert runs["pipeline"].info.status == "FINISHED"


def test_a_server_that_comes_back_during_the_stage_gets_everything_in_order(
    server: MlflowProcess, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_run, "RECONNECT_SECONDS", 0.0)
    with stage_run(config, "train") as run:
        run.log_metrics({"loss": 3.0}, step=1)
        server.kill()
        run.log_metrics({"loss": 2.0}, step=2)
        server.start()
        run.log_metrics({"loss": 1.0}, step=3)
        assert losses(server.client, runs_of(server.client, config)["train"]) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert not list((tmp_path / ".whence" / "spool").iterdir())
    assert runs_of(server.client, config)["train"].info.status == "FINISHED"


def test_a_stage_that_never_reached_the_server_is_recorded_as_if_it_had(
    server: MlflowProcess, config: Config, tmp_path: Path
) -> None:
    with stage_run(config, "prepare"):
        pass

    def failing_stage() -> None:
        with stage_run(config, "train") as run:
            assert run.run_id is None
            assert run.url is None
            run.log_metrics({"loss": 2.0}, step=2)
            raise ValueError("boom")

    server.kill()
    with pytest.raises(ValueError, match="boom"):
        failing_stage()
    with pytest.raises(TrackingError, match="no MLflow server answers"):
        upload_spool(config)

    server.start()
    assert upload_spool(config) == 1
    runs = runs_of(server.client, config)
    train = runs["train"]
    assert train.data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
    assert losses(server.client, train) == [(2, 2.0)]
    assert (train.info.status, runs["pipeline"].info.status) == ("FAILED", "FAILED")
    assert train.data.tags["whence.error"] == "ValueError: boom"
    assert runs["prepare"].info.end_time <= train.info.start_time <= train.info.end_time


def test_what_a_stage_killed_while_offline_had_recorded_is_uploaded(
    server: MlflowProcess, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    code = (
        "import os; from whence.config_file import load_config; from whence.tracking import stage_run\n"
        "with stage_run(load_config('config.yaml'), 'train') as run:\n"
        "    run.log_metrics({'loss': 2.0}, step=2)\n"
        "    os.kill(os.getpid(), 9)"
    )
    server.kill()
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"KFP_RUN_ID": "p"}).returncode == -9
    server.start()
    assert upload_spool(config) == 1
    train = runs_of(server.client, config)["train"]
    assert losses(server.client, train) == [(2, 2.0)]
    assert train.info.status == "KILLED"


def test_spools_of_another_server_and_damaged_ones_do_not_stop_a_stage(
    server: MlflowProcess, config: Config, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    server.kill()
    with stage_run(config, "train"):
        pass
    local = make_config()
    with stage_run(local, "train"):
        pass
    assert upload_spool(local) == 0, "belongs to another address"
    server.start()
    damaged = tmp_path / ".whence" / "spool" / "00000000-damaged"
    damaged.mkdir()
    (damaged / "lock").touch()
    (damaged / "run.json").write_text('{"stage": ')
    with pytest.raises(TrackingError, match="00000000-damaged is damaged"):
        upload_spool(config)
    with stage_run(config, "score"):
        pass
    assert set(runs_of(server.client, config)) == {"pipeline", "train", "score"}
    assert [path.name for path in damaged.parent.iterdir()] == ["00000000-damaged"]


def test_a_server_that_hangs_is_an_error_at_the_check(server: MlflowProcess, config: Config) -> None:
    server.signal(signal.SIGSTOP)
    with pytest.raises(TrackingError, match=rf"no MLflow server answers at {server.uri} \(ReadTimeout\)"):
        check_tracking(config)


def test_a_server_that_refuses_the_host_name_is_an_error_that_names_the_option(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    with running(tmp_path, "--allowed-hosts", "mlflow.example.org") as server:
        uri = server.uri.replace("http://", "http://ann:secret@")
        with pytest.raises(TrackingError, match=r"refuses: .*--allowed-hosts") as error:
            check_tracking(make_config({"tracking.uri": uri}))
    assert "secret" not in str(error.value)
