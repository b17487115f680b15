"""Work that MLflow does not take is not done work: it is listed, and where it is needed it is an error at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from body_limit import limiting
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import MlflowProcess

from whence.config import Config
from whence.data.dataset import ExampleSet
from whence.errors import TrackingError
from whence.files import write_json
from whence.running.declaration import Work
from whence.running.lineage import TRAINING
from whence.stages.train import STAGE
from whence.tracking import stage_run
from whence.tracking.server import ENDS_WITH_TAG

LIMIT = 1 << 20  # nginx's default


@pytest.fixture
def config(
    server: MlflowProcess, make_config: Callable[..., Config], request: pytest.FixtureRequest, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Config]:  # fmt: skip
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-1")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with limiting(server.uri, LIMIT) as address:
        name = request.node.name
        yield make_config({"tracking.uri": address, "tracking.experiment": name, "tracking.retry_seconds": 0.5})


@pytest.fixture
def model(folder: Path) -> Path:
    model = folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"w" * (2 * LIMIT))
    (model / "config.json").write_text("{}")
    return model


def runs_of(client: MlflowClient, config: Config) -> dict[str, Run]:
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    return {run.data.tags["whence.stage"]: run for run in client.search_runs([experiment.experiment_id])}


def test_what_a_proxy_refuses_is_listed_until_an_attempt_records_it(
    server: MlflowProcess, config: Config, model: Path
) -> None:
    with stage_run(config, "train") as run:
        assert run.log_model_version(model, "refused", {}) is None
        run.log_artifact(model / "model.safetensors", "weights")
        run.log_metrics({"loss": 1.0})
    size = f"{2 * LIMIT:,}"
    hint = "a proxy before MLflow limits requests: raise its limit (nginx: client_max_body_size)"
    assert run.refused == [
        f"model model ({2 * LIMIT + 2:,} bytes): 413 Client Error: Request Entity Too Large; {hint}",
        f"artifact model.safetensors ({size} bytes): 413 Client Error: Request Entity Too Large; {hint}",
    ]
    with stage_run(config, "report") as report:
        assert report.not_recorded() == [f"train: {line}" for line in run.refused]
    runs = runs_of(server.client, config)
    assert runs["pipeline"].data.tags["whence.not_recorded.train"] == "\n".join(run.refused)
    assert (runs["train"].info.status, runs["train"].data.metrics["loss"]) == ("FINISHED", 1.0)
    [logged] = server.client.search_logged_models([runs["train"].info.experiment_id])
    assert str(logged.status) == "FAILED", "not waited for any more"

    (model / "model.safetensors").write_bytes(b"small")
    with stage_run(config, "train") as run:
        assert run.log_model_version(model, "refused", {}) == "1"
    assert "whence.not_recorded.train" not in runs_of(server.client, config)["pipeline"].data.tags


def test_a_model_that_a_run_is_for_must_be_registered(server: MlflowProcess, config: Config, model: Path) -> None:
    expected = r"version of 'needed', which this run is for: model model .*: 413"
    with pytest.raises(TrackingError, match=expected), stage_run(config, "train") as run:
        run.log_model_version(model, "needed", {}, required=True)
    parent = runs_of(server.client, config)["pipeline"]
    assert (parent.info.status, parent.data.tags["whence.failed_stage"]) == ("FAILED", "train")
    assert "413" in parent.data.tags["whence.not_recorded.train"]


@pytest.mark.parametrize("ends_with", ["promote", "report"])
def test_training_fails_at_once_where_only_a_registered_model_can_be_promoted(
    server: MlflowProcess, config: Config, model: Path, folder: Path, ends_with: str
) -> None:
    metrics = {"train_loss": 2.0, "final_eval_loss": 1.0}
    write_json(model / TRAINING, {"history": [], "metrics": metrics, "card": {"digest": "c0ffee"}})
    ExampleSet.of(pd.DataFrame({"prompt": ["a"], "completion": ["b"]})).write(folder / "data")
    (folder / "curve").write_text("<p>loss</p>")
    inputs, outputs = (
        {"base_model": model, "train_data": folder / "data"},
        {"model": model, "loss_curve": folder / "curve"},
    )
    with stage_run(config, "prepare") as run:
        run.set_parent_tags({ENDS_WITH_TAG: ends_with})
    needed = pytest.raises(TrackingError, match="which this run is for") if ends_with == "promote" else nullcontext()
    with needed, stage_run(config, "train") as run:
        STAGE.record(Work(config, inputs, {}, {}, {}, outputs, folder, run))
    runs = runs_of(server.client, config)
    assert runs["train"].info.status == ("FAILED" if ends_with == "promote" else "FINISHED")
    assert runs["pipeline"].data.metrics == metrics
    assert "413" in runs["pipeline"].data.tags["whence.not_recorded.train"]


@pytest.mark.parametrize("kept", [True, False], ids=["work volume", "none"])
def test_what_is_kept_where_a_pod_leaves_nothing_is_lost(
    make_config: Callable[..., Config],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kept: bool,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    away = {"tracking.uri": "http://127.0.0.1:9", "tracking.retry_seconds": 0.1}
    config = make_config(away | ({"general.work_dir": str(model.parent)} if kept else {}))
    with stage_run(config, "train") as run:
        assert run.log_model_version(model, "m", {}) is None
    said = caplog.records[-1].getMessage()
    assert ("is lost: MLflow does not answer, and what is kept here is lost with this pod" in said) is not kept
    assert [line.partition(":")[0] for line in run.refused] == ([] if kept else ["all that is not delivered"])
    if not kept:
        expected = r"lost with this pod: set general\.work_dir"
        with pytest.raises(TrackingError, match=expected), stage_run(config, "train") as run:
            run.log_model_version(model, "m", {}, required=True)
