"""The checks of ``whence cluster check`` for real: by kfp's local runner, an S3 server, an MLflow server, a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow_server
import pytest
from conftest import Bucket
from kfp import local
from kfp_server import KubeflowState, serving

from whence import kubeflow
from whence.config import Config
from whence.config_file import parse_config
from whence.pipelines.graphs.check import check_pipeline
from whence.running import cluster_checks
from whence.running.cluster_checks import Outcome, Place, look
from whence.stages import stage

SETTINGS = """
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: [hello]}
evaluation: {mmlu: {source: "builtin:demo", tasks: [everyday_law]}}
cluster: {accelerator_count: 0, cpu_stages: {shm: 1Mi}}
"""


def settings(**changes: Any) -> Config:
    return parse_config(SETTINGS, {key.replace("__", "."): value for key, value in changes.items()})


def outcomes(place: Place) -> dict[str, Outcome]:
    return {outcome.check: outcome for outcome in look(place)}


def test_the_pipeline_of_the_check_runs_and_every_task_says_what_it_has_found(
    bucket: Bucket, server: mlflow_server.MlflowProcess, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bucket.put("data/train.csv", b"text,label\na,b\n")
    config = settings(
        tracking__uri=server.uri, tracking__experiment="checked", dataset__name=None,
        dataset__train_files=[data], dataset__eval_files=[f"s3://{bucket.name}/data"],
        general__work_dir=str(folder / "work"),
    )  # fmt: skip
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"))
    check_pipeline(config, ("prepare", "report"))()
    found = Outcome.read(capfd.readouterr().out)
    assert all(outcome.passed for outcome in found), found
    names = [outcome.check for outcome in found]
    assert names.count("MLflow") == names.count("store") == names.count("volumes") == names.count("image") == 2
    said = {outcome.check: outcome.found for outcome in found}
    assert f"{data} read" in said["store"]
    assert said["MLflow"] == f"{server.uri} keeps runs and files in experiment checked"
    experiment = server.client.get_experiment_by_name("checked")
    assert server.client.search_runs([experiment.experiment_id]) == [], "a check leaves no run"


def test_a_failed_check_fails_its_task_with_the_rest_of_the_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    text = settings(tracking__uri="http://127.0.0.1:1", general__work_dir=str(folder / "file" / "work")).to_yaml()
    (folder / "settings").write_text(text)
    with pytest.raises(SystemExit):
        kubeflow.run_checks("report", SimpleNamespace(path=str(folder / "settings"), uri="minio://mlpipeline/x"))
    out, err = capsys.readouterr()
    failed = {outcome.check: outcome.found for outcome in Outcome.read(out) if not outcome.passed}
    assert failed.keys() == {"MLflow", "volumes"}
    assert "no MLflow server answers at http://127.0.0.1:1" in failed["MLflow"]
    assert "give the volume to that user" in failed["volumes"]
    assert err.strip() == "Error: report: MLflow, volumes failed; what was found is above"


def test_the_store_is_read_and_written_with_the_key_of_the_task(
    bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket.put("v2/run/settings/written", b"models: 1")
    place = Place(settings(), stage("report"), address)
    assert (
        outcomes(place)["store"].found
        == f"{address} stored and fetched by Kubeflow; read and written with this task's key"
    )
    assert [item["Key"] for item in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]] == [
        "v2/run/settings/written"
    ]
    missing = Place(
        settings(dataset__name=None, dataset__train_files=[f"s3://{bucket.name}/no"], dataset__eval_files=["x.csv"])
    )
    assert f"there is nothing at s3://{bucket.name}/no" in outcomes(missing)["store"].found
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    refused = outcomes(place)["store"]
    assert not refused.passed
    assert "AWS_SECRET_ACCESS_KEY is not the secret of AWS_ACCESS_KEY_ID" in refused.found


def test_an_endpoint_without_a_scheme_is_told(bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    refused = outcomes(Place(settings(), stage("report"), f"s3://{bucket.name}/x"))["store"]
    assert (
        refused.found == "AWS_ENDPOINT_URL: 127.0.0.1:9000 is no address; write it with http:// or https:// before it"
    )


def test_what_only_a_cluster_has_is_not_looked_for_here(folder: Path) -> None:
    assert outcomes(Place(settings())).keys() <= {"MLflow", "volumes", "network"}


def test_shared_memory_and_image_are_held_against_what_the_stage_should_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHENCE_STAGE", "train")
    config = settings(cluster__cpu_stages={"shm": "1000Ti"})
    found = outcomes(Place(config, stage("report"), "minio://x"))
    assert "is that of train, not of report" in found["image"].found
    assert "cluster settings ask for 1024000.0 GiB" in found["/dev/shm"].found
    assert not found["image"].passed
    assert not found["/dev/shm"].passed


def test_the_hub_is_asked_for_what_the_settings_name_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:1")
    refused = outcomes(Place(settings(models__base__name="TinyLlama/TinyLlama-1.1B-Chat-v1.0")))["hub"]
    assert not refused.passed
    assert "models.base.name: http://127.0.0.1:1 does not give TinyLlama/TinyLlama-1.1B-Chat-v1.0" in refused.found
    assert "HF_ENDPOINT" in refused.found


def test_a_torch_for_cpus_on_a_gpu_node_is_told(folder: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    found = outcomes(
        Place(
            settings(cluster__accelerator_count=1, cluster__stages={"train": {"shm": "1Mi"}}),
            stage("train"),
            "minio://x",
        )
    )
    assert "is for CPUs; build the images with TORCH=cuda" in found["GPU"].found
    assert not found["GPU"].passed


def test_the_rights_of_the_service_account_are_asked_of_kubernetes_past_any_proxy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    both = folder / "both.pem"
    subprocess.run([*command.split(), "-keyout", both, "-out", folder / "ca.crt"], check=True, capture_output=True)
    both.write_bytes(both.read_bytes() + (folder / "ca.crt").read_bytes())
    (folder / "token").write_text("of-the-pod\n")
    (folder / "namespace").write_text("team-a")
    monkeypatch.setattr(cluster_checks, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    state = KubeflowState(token="of-the-pod")
    place = Place(settings(), stage("report"), "minio://x")
    with serving(state, certificate=both) as address:
        host, _, port = address.removeprefix("https://").partition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        assert outcomes(place)["rights"].passed
        state.forbidden = {"verb": "create", "resource": "workflowtaskresults", "namespace": "team-a"}
        refused = outcomes(place)["rights"]
    assert "may not create workflowtaskresults in team-a; give --service-account whence-runner" in refused.found
    assert "does not answer" in outcomes(place)["rights"].found
    assert state.violations == []
