"""The demo pipeline in the stages' containers, run by kfp's DockerRunner and recorded by a real MLflow server."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pandas as pd
import pytest
from conftest import STAGES, image_of
from docker.errors import APIError
from mlflow import MlflowClient
from mlflow_server import running

from whence.config_file import inline_prompts, load_config

pytestmark = pytest.mark.timeout(2400)  # the demo takes minutes, and many more on a machine that others use too
# The attribution pipeline: all but what retraining adds.
COMPONENTS = set(STAGES) - {"find_champion", "gate", "promote"}
ROOT = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("run_pipeline.py")
LIMIT = 3 << 30


@dataclass
class Watch:
    """Notes how each container of the pipeline that works in ``folder`` is set up, by image."""

    folder: Path
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        client = docker.from_env()
        while not self._ended.wait(0.2):
            try:
                for container in self._ours(client):
                    self.seen.setdefault(container.attrs["Config"]["Image"], container.attrs)
            except APIError:
                continue  # gone between being listed and being looked at

    def end(self) -> None:
        """Stop, and remove what an interrupted run left behind."""
        self._ended.set()
        for container in self._ours(docker.from_env()):
            container.remove(force=True)

    def _ours(self, client: docker.DockerClient) -> list[Any]:
        """The running ones that have the folder mounted; other tests have theirs."""
        work = str(self.folder / "work")
        running = client.containers.list()
        return [one for one in running if work in {mount.get("Source") for mount in one.attrs["Mounts"]}]


@dataclass(frozen=True)
class Run:
    """What a finished pipeline left: artifacts, containers as they were, the tracking server."""

    folder: Path
    containers: dict[str, dict[str, Any]]
    client: MlflowClient
    run_id: str

    def artifact(self, stage: str, name: str) -> Path:
        """An output of a stage."""
        return next((self.folder / "root").glob(f"*/{stage}/{name}"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The demo, once."""
    folder = tmp_path_factory.mktemp("containers")
    for name in ("root", "work", "cache", "tracking"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)  # written by the containers' user
    run_id = str(uuid.uuid4())
    with running(folder / "tracking", "--serve-artifacts") as server:
        config = inline_prompts(
            load_config(ROOT / "configs/demo.yaml", {"tracking.uri": server.uri, "general.work_dir": "/work/whence"})
        )
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        environment = os.environ | {"WHENCE_IMAGE_TAG": os.environ["WHENCE_TEST_TAG"], "PYTHONPATH": str(ROOT)}
        watch = Watch(folder)
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        try:
            finished = subprocess.run(
                [sys.executable, str(RUN), str(folder / "config.yaml"), str(folder), run_id],
                env=environment, cwd=folder, capture_output=True, text=True,
            )  # fmt: skip
        finally:
            watch.end()
            thread.join()
        assert finished.returncode == 0, (finished.stdout + finished.stderr)[-6000:]
        yield Run(folder, watch.seen, server.client, run_id)


def test_every_stage_ran_in_its_own_image(pipeline: Run) -> None:
    assert set(pipeline.containers) == {image_of(stage).name for stage in COMPONENTS}


def test_no_container_could_write_to_its_root_or_was_root(pipeline: Run) -> None:
    for name, attributes in pipeline.containers.items():
        host = attributes["HostConfig"]
        assert host["ReadonlyRootfs"] is True, name
        assert attributes["Config"]["User"] == "1000:1000", name
        assert host["Memory"] == LIMIT, name
        assert not host["Privileged"], name
        assert "no-new-privileges" in host["SecurityOpt"], name


def test_what_they_wrote_belongs_to_the_images_user(pipeline: Run) -> None:
    written = [path for path in (pipeline.folder / "root").glob("*/*/*") if path.name != "executor_output.json"]
    assert len(written) > len(COMPONENTS)
    assert {path.stat().st_uid for path in written if not stat.S_ISLNK(path.lstat().st_mode)} == {1000}


def test_the_answers_and_their_examples_are_found_as_without_containers(pipeline: Run) -> None:
    headline = json.loads((pipeline.artifact("compare", "comparison") / "comparison.json").read_text())["headline"]
    assert headline["finetuned.accuracy"] >= 0.9
    assert headline["base.accuracy"] <= 0.25
    evidence = json.loads((pipeline.artifact("validate", "evidence") / "evidence.json").read_text())
    found = {measure["name"]: measure["methods"]["influence"]["value"] for measure in evidence["measures"]}
    assert found["planted_recall"] >= 0.95
    assert found["mislabeled_auroc"] >= 0.75  # by 22 flipped labels, see tests/e2e/test_demo.py
    table = pd.read_parquet(pipeline.artifact("compare", "comparison") / "comparison.parquet")
    assert {"example_prompt", "z_score"} <= set(table.columns)
    assert list(pipeline.artifact("inspect", "spectra").glob("*.png"))


def test_the_record_is_complete_though_images_hold_only_mlflow_s_client(pipeline: Run) -> None:
    experiment = pipeline.client.get_experiment_by_name("whence")
    runs = pipeline.client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = {run.data.tags["whence.stage"]: run for run in runs if run is not parent}
    assert parent.data.tags["kfp.pipeline_run_id"] == pipeline.run_id
    assert set(nested) == COMPONENTS
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.user"] for run in nested.values()} == {"whence"}
    factors = pipeline.client.list_artifacts(nested["fit_factors"].info.run_id, "factors")
    assert any(item.path.endswith("factors.json") for item in factors)
    assert len(pipeline.client.search_model_versions("name='whence'")) == 1
