"""Runs that ended in Kubeflow without a word are ended in MLflow: a real MLflow server, Kubeflow's recorded answers."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from kfp_server import KubeflowState, serving
from mlflow.entities import Run
from mlflow_server import MlflowProcess

from whence.config import Config
from whence.tracking import StageRun, stage_run
from whence.tracking import settle as module

# As the image runs it, which has MLflow and not Whence.
JOB = """
import runpy, sys
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
finally:
    assert not any(name.partition(".")[0] == "whence" for name in sys.modules)
"""


@pytest.fixture
def config(
    server: MlflowProcess, make_config: Callable[..., Config], request: pytest.FixtureRequest, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Config:  # fmt: skip
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return make_config({"tracking.uri": server.uri, "tracking.experiment": request.node.name})


def settle(server: MlflowProcess, address: str, code: int = 0) -> str:
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.uri, "KF_PIPELINES_ENDPOINT": f"{address}/"}
    command = [sys.executable, "-c", JOB, str(module.__file__)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def runs_by_stage(server: MlflowProcess, config: Config, pipeline_run: str) -> dict[str, Run]:
    experiment = server.client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = server.client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if run.data.tags.get("kfp.pipeline_run_id") == pipeline_run]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return {run.data.tags["whence.stage"]: run for run in [parent, *nested]}


def test_what_ended_in_kubeflow_ends_in_mlflow_and_the_rest_is_left_alone(
    server: MlflowProcess, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = KubeflowState()
    names = ("demo-finished", "retraining-failed", "terminated", "image-missing")
    ids = {name: state.record(name) for name in names} | {"elsewhere": "5c0b-elsewhere"}
    for run_id in ids.values():
        monkeypatch.setenv("KFP_RUN_ID", run_id)
        with stage_run(config, "prepare"):
            pass
    monkeypatch.setenv("KFP_RUN_ID", ids["terminated"])
    StageRun(config, "train")  # nobody closes it
    with serving(state) as address:
        settle(server, address)
        settle(server, address)
    assert not state.violations

    found = {name: runs_by_stage(server, config, run_id) for name, run_id in ids.items()}
    parents = {name: runs["pipeline"] for name, runs in found.items()}
    assert {name: parent.info.status for name, parent in parents.items()} == {
        "demo-finished": "FINISHED",
        "retraining-failed": "FAILED",
        "terminated": "KILLED",
        "image-missing": "RUNNING",
        "elsewhere": "RUNNING",
    }
    assert parents["demo-finished"].info.end_time == 1000 * datetime.fromisoformat("2026-11-25T22:44:30Z").timestamp()
    failed, stopped = parents["retraining-failed"].data.tags, parents["terminated"].data.tags
    assert (failed["whence.failed_stage"], failed["whence.error"]) == ("gate", "gate failed")
    assert failed["mlflow.note.content"].startswith("<!-- failure -->\n**Gate failed**")
    assert (stopped["whence.failed_stage"], stopped["whence.error"]) == ("train", "train was stopped")
    assert found["terminated"]["train"].info.status == "KILLED"
    assert "whence.error" not in parents["image-missing"].data.tags


def test_a_task_that_was_killed_for_its_memory_is_the_one_that_failed(
    server: MlflowProcess, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = KubeflowState()
    run_id = state.record("retraining-failed")
    monkeypatch.setenv("KFP_RUN_ID", run_id)
    StageRun(config, "gate")
    with serving(state) as address:
        settle(server, address)
    runs = runs_by_stage(server, config, run_id)
    assert {run.info.status for run in runs.values()} == {"FAILED"}
    error = runs["pipeline"].data.tags["whence.error"]
    assert error == "gate failed: it left no word, as one that is killed for its memory"


def test_a_kubeflow_that_wants_a_token_gets_the_projected_one(
    server: MlflowProcess, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = KubeflowState(token="of-the-pod")
    monkeypatch.setenv("KFP_RUN_ID", state.record("demo-finished"))
    with stage_run(config, "prepare"):
        pass
    (folder / "token").write_text("of-the-pod\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(folder / "token"))
    with serving(state) as address:
        assert ": finished" in settle(server, address)


def test_one_run_that_kubeflow_does_not_show_holds_up_no_other(
    server: MlflowProcess, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = KubeflowState()
    hidden, shown = "5c0b-of-another-namespace", state.record("demo-finished")
    for run_id in (shown, hidden):  # MLflow lists the newest first
        monkeypatch.setenv("KFP_RUN_ID", run_id)
        with stage_run(config, "prepare"):
            pass
    state.faults = lambda call: 403 if call.path.endswith(hidden) else None
    with serving(state) as address:
        said = settle(server, address, code=1)
    assert "Kubeflow does not say how it stands: 403" in said
    states = {run_id: runs_by_stage(server, config, run_id)["pipeline"].info.status for run_id in (shown, hidden)}
    assert states == {shown: "FINISHED", hidden: "RUNNING"}


def test_the_description_keeps_what_people_wrote_and_one_text_of_each_section() -> None:
    with_section = runpy.run_path(str(module.__file__))["with_section"]
    note = with_section("By hand.", "prepare", "Facts.")
    note = with_section(with_section(note, "report", "Old."), "report", "New <!-- x --> text.\n")
    assert note == "By hand.\n\n<!-- report -->\nNew <!-- x --> text.\n\n<!-- prepare -->\nFacts."
    assert with_section(note, "report", "") == "By hand.\n\n<!-- prepare -->\nFacts."
    assert len(with_section(note, "gate", "x" * 10_000)) == 8000
