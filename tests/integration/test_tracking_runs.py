"""What a stage records is found again by MLflow's own client, in a sqlite file and at a real server alike."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pandas as pd
import pytest
from jobs import Job
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow_server import MlflowProcess

from whence.config import Config
from whence.errors import TrackingError
from whence.tracking import StageRun, check_tracking, settle_run, stage_run
from whence.tracking.address import Address
from whence.tracking.server import ENDS_WITH_TAG, MlflowServer, RunDescription
from whence.tracking.spool import Call

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(uri: str, make_config: MakeConfig, request: pytest.FixtureRequest) -> Config:
    # An experiment of its own for each test: the server is shared.
    return make_config({"tracking.uri": uri, "tracking.experiment": request.node.name, "tracking.retry_seconds": 1})


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs_of(client: MlflowClient, config: Config) -> list[Run]:
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def only(runs: list[Run], stage: str) -> Run:
    [run] = [run for run in runs if run.data.tags["whence.stage"] == stage]
    return run


def model_folder(folder: Path) -> Path:
    model = folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    return model


def test_a_stage_is_nested_under_its_pipeline_run_with_everything_it_logged(
    config: Config, client: MlflowClient, uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-1")
    (folder / "page").write_text("<p>hello</p>")
    registered = f"model-{config.tracking.experiment.replace('[', '-').replace(']', '')}"
    with stage_run(config, "train") as run:
        run.log_params({"training": {"learning_rate": 2e-5}, "dataset.loss_on": "answer"})
        run.log_metrics({"loss": 2.0}, step=10)
        run.log_metrics({"loss": 1.0, "nothing": float("nan")}, step=20)
        run.log_artifact(folder / "page", "plots", name="page.html")
        run.log_table(pd.DataFrame({"prompt": ["ä"], "score": [1.5]}), "tables/answers.json")
        run.log_dataset("train_data", "f" * 64, "builtin:demo", 7, context="train")
        tags = {"whence.data_fingerprint": "f" * 64}
        version = run.log_model_version(model_folder(folder), registered, tags, about="Trained on facts.")
        run.log_parent_metrics({"accuracy": 0.9})
        run.set_tags({"note": "hello"})
        run.set_parent_tags({"whence.evidence": "strong"})

    runs = runs_of(client, config)
    parent, nested = only(runs, "pipeline"), only(runs, "train")
    assert len(runs) == 2
    assert parent.data.tags["kfp.pipeline_run_id"] == "pipeline-1"
    assert parent.data.metrics == {"accuracy": 0.9}
    assert parent.data.tags["whence.evidence"] == "strong"
    assert "whence.evidence" not in nested.data.tags
    assert parent.data.params["generation.max_new_tokens"] == "8"
    assert (parent.info.status, nested.info.status) == ("RUNNING", "FINISHED"), "the pipeline goes on after training"
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert nested.info.run_name == "train"
    assert nested.data.tags["note"] == "hello"
    assert nested.data.params == {"train.training.learning_rate": "2e-05", "train.dataset.loss_on": "answer"}
    history = client.get_metric_history(nested.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.0), (20, 1.0)]

    [given] = nested.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("train_data", "f" * 36)
    assert [tag.value for tag in given.tags] == ["train"]
    page, table = (
        Path(mlflow.artifacts.download_artifacts(run_id=nested.info.run_id, artifact_path=path, tracking_uri=uri))
        for path in ("plots/page.html", "tables/answers.json")
    )
    assert page.read_text() == "<p>hello</p>"
    assert json.loads(table.read_text()) == {"columns": ["prompt", "score"], "data": [["ä", 1.5]]}
    assert {"path": "tables/answers.json", "type": "table"} in json.loads(nested.data.tags["mlflow.loggedArtifacts"])

    found = client.get_model_version(registered, version)
    assert found.run_id == parent.info.run_id, "where the report is"
    assert found.description == "Trained on facts."
    assert found.tags["whence.data_fingerprint"] == "f" * 64
    [output] = nested.outputs.model_outputs
    assert [each.model_id for each in parent.outputs.model_outputs] == [output.model_id]
    logged = client.get_logged_model(output.model_id)
    assert (str(logged.status), logged.source_run_id) == ("READY", nested.info.run_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": registered, "version": version}]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # as who uses the model sets it
    weights = mlflow.artifacts.download_artifacts(f"models:/{registered}/{version}", dst_path=str(folder))
    assert (Path(weights) / "model.safetensors").read_bytes() == b"weights"


def test_the_stages_of_a_pipeline_share_one_parent_that_ends_with_the_last_of_them(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-1")

    def parent() -> Run:
        return only(runs_of(client, config), "pipeline")

    with stage_run(config, "prepare") as run:
        assert parent().info.status == "RUNNING"
        run.set_parent_tags({ENDS_WITH_TAG: "report"})
    assert parent().info.status == "RUNNING", "between two tasks the run goes on"
    with stage_run(config, "train"), stage_run(config, "report"):
        pass
    assert parent().info.status == "FINISHED"

    with stage_run(config, "report"):
        assert parent().info.status == "RUNNING", "a task that is tried again"
    assert parent().info.status == "FINISHED"
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-2")
    with stage_run(config, "prepare"):
        pass
    assert len([run for run in runs_of(client, config) if run.data.tags["whence.stage"] == "pipeline"]) == 2


def test_a_failed_stage_ends_the_parent_with_its_name_and_message_until_it_is_tried_again(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-1")

    def parent() -> Run:
        return only(runs_of(client, config), "pipeline")

    def fail(run: StageRun) -> None:
        run.log_params({"seed": 1})
        raise ValueError("boom `at` <b>column</b>\n7")

    with stage_run(config, "prepare") as run:
        run.set_parent_tags({ENDS_WITH_TAG: "report"})
        run.describe("Facts of the `demo`.")
    with stage_run(config, "mmlu"):
        with pytest.raises(ValueError, match="boom"), stage_run(config, "score") as first:
            fail(first)
        assert parent().info.status == "RUNNING", "another task goes on"
    assert parent().info.status == "FAILED"
    assert parent().data.tags["whence.failed_stage"] == "score"
    assert parent().data.tags["whence.error"] == "score failed: ValueError: boom `at` <b>column</b>\n7"
    note = parent().data.tags["mlflow.note.content"]
    assert note == (
        "<!-- failure -->\n**Score failed**: `ValueError: boom 'at' <b>column</b> 7`\n\n"
        "<!-- prepare -->\nFacts of the `demo`."
    )

    with stage_run(config, "score") as run:
        assert run.run_id == first.run_id, "a task that is tried again takes over the run of its first attempt"
        run.log_params({"seed": 1})
        assert parent().info.status == "RUNNING"
        assert only(runs_of(client, config), "score").info.status == "RUNNING"
    again, after = only(runs_of(client, config), "score"), parent()
    assert (again.info.status, after.info.status) == ("FINISHED", "RUNNING")
    assert (
        again.data.tags["whence.error"],
        after.data.tags["whence.error"],
        after.data.tags["whence.failed_stage"],
    ) == ("",) * 3
    assert after.data.tags["mlflow.note.content"] == "<!-- prepare -->\nFacts of the `demo`."

    with pytest.raises(KeyboardInterrupt), stage_run(config, "compare"):
        raise KeyboardInterrupt
    assert only(runs_of(client, config), "compare").info.status == "KILLED"
    assert (parent().info.status, parent().data.tags["whence.error"]) == ("KILLED", "compare was stopped")


def test_a_process_that_is_killed_gives_its_run_to_the_next_attempt(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(log_steps, config, "fit_factors-covariance-2", folder, True)
    assert job.receive() == "logged"
    assert job.kill()
    killed = only(runs_of(client, config), "fit_factors-covariance-2")
    assert killed.info.status == "RUNNING"
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-1")
    for part in ("fit_factors-covariance-2", "fit_factors-covariance-1"):
        with stage_run(config, part) as run:
            assert (run.run_id == killed.info.run_id) == (part == "fit_factors-covariance-2")
    assert client.get_run(killed.info.run_id).info.status == "FINISHED"
    assert len(runs_of(client, config)) == 3


def test_a_run_whose_stage_was_killed_is_ended_by_who_started_it(
    config: Config, client: MlflowClient, folder: Path
) -> None:
    job = Job(log_steps, config, "train", folder, True)
    assert job.receive() == "logged"
    assert job.kill()
    settle_run(config, "pipeline-1", "FAILED")
    parent, train = only(runs_of(client, config), "pipeline"), only(runs_of(client, config), "train")
    assert (parent.info.status, train.info.status) == ("FAILED", "FAILED")
    assert parent.data.tags["whence.error"] == "train failed: it left no word, as one that is killed for its memory"
    settle_run(config, "a run without a record", "FAILED")
    assert len(runs_of(client, config)) == 2


def log_steps(connection: Connection, config: Config, stage: str, folder: Path, hang: bool = False) -> None:
    """A stage of a pipeline; sends what it printed to the error stream."""
    os.chdir(folder)
    os.environ["KFP_RUN_ID"] = "pipeline-1"
    with contextlib.redirect_stderr(io.StringIO()) as errors, stage_run(config, stage) as run:
        for step in range(20):
            run.log_metrics({"loss": step}, step=step)
        if hang:
            connection.send("logged")
            time.sleep(600)
    connection.send(errors.getvalue())


def test_stages_that_start_at_once_end_up_under_one_parent(config: Config, client: MlflowClient, folder: Path) -> None:
    stages = ["fit_factors", "generate", "mmlu", "inspect"]
    jobs = [Job(log_steps, config, stage, folder) for stage in stages]
    for job in jobs:
        assert job.receive() == "", "nothing had to be retried or kept on disk"
        assert job.join() == 0
    runs = runs_of(client, config)
    parent = only(runs, "pipeline")
    assert {only(runs, stage).data.tags["mlflow.parentRunId"] for stage in stages} == {parent.info.run_id}
    assert parent.info.status == "RUNNING", "none of these is the last"
    assert {len(client.get_metric_history(only(runs, stage).info.run_id, "loss")) for stage in stages} == {20}


def test_of_two_that_see_no_parent_at_once_only_one_creates_it(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_saw_none, look = threading.Barrier(2), MlflowServer._parent
    first_looks = iter([True, True])

    def look_together(server: MlflowServer, pipeline_run: str) -> Run | None:
        found = look(server, pipeline_run)
        if next(first_looks, False):
            both_saw_none.wait(timeout=30)
        return found

    monkeypatch.setattr(MlflowServer, "_parent", look_together)
    address = Address.parse(config.tracking.uri)
    servers = [MlflowServer(address, config.tracking.experiment) for _ in range(2)]
    about = [RunDescription(f"p/{stage}", stage, "", "", "demo", 1_700_000_000_000, "p") for stage in ("a", "b")]
    with ThreadPoolExecutor() as threads:
        opened = list(threads.map(MlflowServer.open_run, servers, about))
    assert opened[0].parent_id == opened[1].parent_id
    runs = runs_of(client, config)
    assert len(runs) == 3
    assert only(runs, "pipeline").info.run_name == "demo 2023-11-14 #1"
    assert not [model for model in client.search_registered_models() if model.name.startswith("whence.runs.")]
    third = servers[0].open_run(replace(about[0], key="q/a", pipeline_run="q"))
    assert client.get_run(third.parent_id).info.run_name == "demo 2023-11-14 #2"


def test_a_stage_outside_a_pipeline_stands_alone(config: Config, client: MlflowClient, folder: Path) -> None:
    with stage_run(config, "train") as run:
        run.log_parent_metrics({"accuracy": 0.5})
    [alone] = runs_of(client, config)
    assert "mlflow.parentRunId" not in alone.data.tags
    assert alone.data.metrics == {"accuracy": 0.5}


def test_the_run_that_kubeflows_plugin_made_for_the_task_is_resumed(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment(config.tracking.experiment)
    parent = client.create_run(experiment, tags={"kfp.pipeline_run_id": "p"}, run_name="by KFP").info.run_id
    task = client.create_run(experiment, tags={"mlflow.parentRunId": parent, "kfp.pipeline_run_id": "p"}).info.run_id
    client.log_param(task, "learning_rate", "logged by KFP")
    monkeypatch.setenv("KFP_RUN_ID", "p")
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    with stage_run(config, "train") as run:
        assert run.run_id == task
        run.log_params({"learning_rate": 1e-3})
        run.log_parent_metrics({"accuracy": 0.5})
    assert len(runs_of(client, config)) == 2, "no stray run"
    assert client.get_run(task).info.status == "FINISHED"
    assert client.get_run(task).data.params == {"learning_rate": "logged by KFP", "train.learning_rate": "0.001"}
    assert client.get_run(parent).data.metrics == {"accuracy": 0.5}
    assert client.get_run(parent).info.status == "RUNNING", "Kubeflow ends what Kubeflow began"


def test_a_parent_named_by_mlflow_run_id_gets_the_stages_nested(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment(config.tracking.experiment)
    parent = client.create_run(experiment, tags={}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    for stage in ("prepare", "train"):
        with stage_run(config, stage) as run:
            assert run.run_id != parent
    nested = [run for run in runs_of(client, config) if run.info.run_id != parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent}
    assert {run.info.run_name for run in nested} == {"prepare", "train"}


def test_an_unknown_or_deleted_mlflow_run_id_is_an_error_before_any_work(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = client.create_run(client.create_experiment(config.tracking.experiment)).info.run_id
    client.delete_run(deleted)
    for run_id, state in (("0" * 32, "is not known"), (deleted, "has been deleted")):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        expected = f"MLFLOW_RUN_ID: the run {run_id} {state} at "
        with pytest.raises(TrackingError, match=expected), stage_run(config, "train"):
            pytest.fail("the body must not run")


def test_a_deleted_experiment_is_an_error_with_the_way_out(config: Config, client: MlflowClient, folder: Path) -> None:
    client.delete_experiment(client.create_experiment(config.tracking.experiment))
    with pytest.raises(TrackingError, match=r"has been deleted; restore it"), stage_run(config, "train"):
        pytest.fail("the body must not run")


def test_what_mlflow_refuses_is_reported_and_costs_nothing_else(
    config: Config, client: MlflowClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_run(config, "train") as run:
        run.log_params({"seed": 1})
        run.log_params({"seed": 2})
        assert run.log_model_version(model_folder(folder), "not/a:name", {}) is None
        run.log_metrics({"loss": 1.0})
    [recorded] = runs_of(client, config)
    assert recorded.data.params == {"train.seed": "1"}
    assert recorded.data.metrics == {"loss": 1.0}
    assert recorded.info.status == "FINISHED"
    refusals = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert len(refusals) == 2
    assert "train.seed" in refusals[0]
    assert not (folder / ".whence").exists(), "what can never succeed is not kept for later"


def test_a_missing_file_is_an_error_at_once(config: Config, folder: Path) -> None:
    with pytest.raises(TrackingError, match=r"cannot log .*absent\.png"), stage_run(config, "train") as run:
        run.log_artifact(folder / "absent.png")


def every_kind_of_call(folder: Path) -> list[Call]:
    table = folder / "answers.json"
    pd.DataFrame({"a": [1]}).to_json(table, orient="split", index=False)
    metrics: dict[str, Any] = {"values": {"loss": 1.0}, "step": 3, "time": 1_700_000_000_000}
    dataset = {"name": "d", "fingerprint": "f" * 64, "source": "builtin:demo", "rows": 1, "context": "train"}
    return [
        Call("params", {"values": {"train.seed": "1"}}),
        Call("metrics", {**metrics, "parent": False}),
        Call("metrics", {**metrics, "parent": True}),
        Call("tags", {"values": {"note": "x"}}),
        Call("artifact", {"folder": "plots"}, table),
        Call("table", {"folder": None}, table),
        Call("dataset", dataset),
        Call("model", {"name": f"once-{folder.name}", "tags": {"a": "b"}}, model_folder(folder)),
        Call("finish", {"stage": "train", "status": "FINISHED", "time": 1_700_000_100_000, "refused": []}),
    ]


def test_a_call_whose_answer_got_lost_is_not_recorded_twice(config: Config, client: MlflowClient, folder: Path) -> None:
    about = RunDescription("key", "train", "", "", "demo", 1_700_000_000_000, pipeline_run="pipeline-1")
    calls = every_kind_of_call(folder)
    for call in calls:
        for _ in range(2):  # as by two processes, each of which opens the run anew
            tracker = MlflowServer(Address.parse(config.tracking.uri), config.tracking.experiment)
            tracker.send(tracker.open_run(about), call)

    runs = runs_of(client, config)
    parent, run = only(runs, "pipeline"), only(runs, "train")
    assert len(runs) == 2
    for run_id in (parent.info.run_id, run.info.run_id):
        assert len(client.get_metric_history(run_id, "loss")) == 1
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.outputs.model_outputs) == 1
    assert len(client.search_model_versions(f"name = 'once-{folder.name}'")) == 1
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert run.data.tags["mlflow.loggedArtifacts"].count("answers.json") == 1
    assert run.info.end_time == 1_700_000_100_000


def test_no_run_is_left_active_or_deleted(config: Config, client: MlflowClient, folder: Path) -> None:
    with stage_run(config, "train"):
        assert mlflow.active_run() is None
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    assert not client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY)


def test_a_sqlite_record_lies_beside_its_artifacts_and_nowhere_else(folder: Path, make_config: MakeConfig) -> None:
    config = make_config()
    check_tracking(config)
    with stage_run(config, "train") as run:
        run.log_model_version(model_folder(folder), "whence", {})
        assert run.url is None
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts", "model"}


def test_a_run_at_a_server_has_an_address_for_people(
    server: MlflowProcess, folder: Path, make_config: MakeConfig
) -> None:
    with stage_run(make_config({"tracking.uri": server.uri}), "train") as run:
        assert run.url is not None
        assert run.url.startswith(f"{server.uri}/#/experiments/")
        assert run.url.endswith(f"/runs/{run.run_id}")


def test_kubeflow_and_mlflow_link_to_each_other(
    config: Config, make_config: MakeConfig, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "5c0b-1")
    addresses = {"ui_url": "https://mlflow.example/", "kubeflow_url": "https://kubeflow.example/pipeline/"}
    linked = make_config(
        {f"tracking.{key}": value for key, value in (config.tracking.model_dump() | addresses).items()}
    )
    with stage_run(linked, "prepare") as run:
        pass
    parent, nested = only(runs_of(client, config), "pipeline"), only(runs_of(client, config), "prepare")
    assert parent.data.tags["kfp.pipeline_run_url"] == "https://kubeflow.example/pipeline/#/runs/details/5c0b-1"
    pages = f"https://mlflow.example/#/experiments/{parent.info.experiment_id}/runs"
    assert (run.pipeline_url, run.url) == (f"{pages}/{parent.info.run_id}", f"{pages}/{nested.info.run_id}")

    monkeypatch.setenv("KFP_RUN_ID", "5c0b-2")
    with stage_run(config, "train"):
        pass
    [other] = [run for run in runs_of(client, config) if run.data.tags.get("kfp.pipeline_run_id") == "5c0b-2"]
    assert "kfp.pipeline_run_url" not in other.data.tags, "nobody said where Kubeflow's UI is"


def test_the_machine_is_watched_while_a_stage_runs_unless_mlflows_variable_says_no(
    config: Config, client: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with stage_run(config, "train"):
        time.sleep(2)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with stage_run(config, "score"):
        time.sleep(1)
    watched, unwatched = (only(runs_of(client, config), stage) for stage in ("train", "score"))
    assert unwatched.data.metrics == {}
    assert all(name.startswith("system/") for name in watched.data.metrics)
    assert 0 <= watched.data.metrics["system/cpu_utilization_percentage"] <= 100
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    assert 0 < watched.data.metrics["system/system_memory_usage_megabytes"] < available
    history = client.get_metric_history(watched.info.run_id, "system/cpu_utilization_percentage")
    assert sorted(point.step for point in history) == list(range(len(history)))
    assert len(history) >= 2
    assert watched.info.status == "FINISHED"


def test_a_healthy_server_passes_the_check(server: MlflowProcess, folder: Path, make_config: MakeConfig) -> None:
    check_tracking(make_config({"tracking.uri": server.uri}))
