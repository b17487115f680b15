"""The tracking server as `mlflow/` makes it and `k8s/` deploys it, with a real PostgreSQL and a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow_image
import postgres_server
import pytest
import requests
import yaml
from absent import absent
from mlflow_image import ROOT, Server
from mlflow_stack import Stack, client_process, make_buckets
from packages import PackagesUnavailable
from swift import Swift

ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "admin-password-1"}
FORMS_KEY = "signs-the-forms-of-login-pages"
SECRETS = (postgres_server.PASSWORD, ADMIN["MLFLOW_TRACKING_PASSWORD"], FORMS_KEY)
MIB = 1024 * 1024
SIZES = {"lambda.safetensors": 8 * MIB, "eigenvectors.safetensors": 48 * MIB, "factors.json": 200}
# As a stage does it; the threshold is lowered so that 48 MiB is a large file.
WRITER = """
import sys
from pathlib import Path
from whence.config_file import load_config
from whence.tracking import stage_run

config, factors = load_config("config.yaml"), Path(sys.argv[1])
with stage_run(config, "fit_factors") as run:
    run.log_params({"factors.strategy": "ekfac"})
    run.log_artifacts(factors, "factors")
with stage_run(config, "train") as run:
    model = Path("model")
    model.mkdir(exist_ok=True)
    (model / "model.safetensors").write_bytes(b"weights")
    version = run.log_model_version(model, config.tracking.registered_model, {"whence.data_fingerprint": "f" * 64})
    run.log_parent_metrics({"accuracy": 0.9})
assert version == "1", version
"""
READER = """
import hashlib, json, os, sys
import mlflow
from mlflow import MlflowClient

uri, experiment, model = sys.argv[1:]
mlflow.set_tracking_uri(uri)
client = MlflowClient()
runs = {run.data.tags["whence.stage"]: run for run in
        client.search_runs([client.get_experiment_by_name(experiment).experiment_id])}
fit = runs["fit_factors"]
folder = mlflow.artifacts.download_artifacts(run_id=fit.info.run_id, artifact_path="factors")
version = client.get_model_version(model, "1")
weights = mlflow.artifacts.download_artifacts(f"models:/{model}/1")
print(json.dumps({
    "files": {name: hashlib.sha256(open(f"{folder}/{name}", "rb").read()).hexdigest() for name in os.listdir(folder)},
    "uri": fit.info.artifact_uri,
    "params": fit.data.params,
    "nested": [runs[stage].data.tags["mlflow.parentRunId"] for stage in ("fit_factors", "train")],
    "parent": runs["pipeline"].info.run_id,
    "metrics": runs["pipeline"].data.metrics,
    "fingerprint": version.tags["whence.data_fingerprint"],
    "weights": open(f"{weights}/model.safetensors").read(),
}))
"""


@pytest.fixture(scope="module")
def stack(swift: Swift) -> Iterator[Stack]:
    try:
        with postgres_server.running() as postgres:
            stack = Stack(mlflow_image.install(), postgres, swift)
            made = make_buckets(stack.programs, swift.environment)
            assert made.returncode == 0, made.stderr
            yield stack
    except (postgres_server.PostgresUnavailable, PackagesUnavailable) as error:
        absent(error)


@pytest.fixture(scope="module")
def server(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    stack.postgres.create("open_to_all")
    with mlflow_image.serving(stack.programs, tmp_path_factory.mktemp("open"), stack.settings("open_to_all")) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server with basic authentication; its secrets come as files, as Kubernetes mounts them."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "admin").write_text(ADMIN["MLFLOW_TRACKING_PASSWORD"] + "\n")
    (folder / "database").write_text(postgres_server.PASSWORD)
    stack.postgres.create("guarded")
    settings = stack.settings("guarded") | {
        "MLFLOW_BASIC_AUTH": "true",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(folder / "admin"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": FORMS_KEY,
        "PGPASSWORD_FILE": str(folder / "database"),
    }
    del settings["PGPASSWORD"]
    with mlflow_image.serving(stack.programs, folder, settings) as server:
        yield server


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    """A folder of 56 MB that does not compress."""
    folder = tmp_path / "factors"
    folder.mkdir()
    for name, size in SIZES.items():
        with (folder / name).open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))
    return folder


def write_config(folder: Path, make_config: Any, uri: str, experiment: str) -> None:
    settings = {
        "tracking.uri": uri,
        "tracking.experiment": experiment,
        "tracking.registered_model": f"{experiment}-model",
        "tracking.retry_seconds": 0,
    }
    (folder / "config.yaml").write_text(make_config(settings).to_yaml())


def test_a_run_is_written_and_read_back_by_clients_without_credentials_of_the_store(
    stack: Stack, server: Server, factors: Path, make_config: Any, tmp_path: Path
) -> None:
    write_config(tmp_path, make_config, server.uri, "large")
    wrote = client_process(
        tmp_path, WRITER, str(factors), KFP_RUN_ID="run-1", MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE=str(20 * MIB)
    )
    assert wrote.returncode == 0, wrote.stderr
    assert not (tmp_path / ".whence").exists(), f"something was kept for later:\n{wrote.stderr}"
    read = client_process(tmp_path, READER, server.uri, "large", "large-model")
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)

    assert found["uri"].startswith("mlflow-artifacts:"), "files go through the server"
    expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in factors.iterdir()}
    assert found["files"] == expected
    assert found["params"] == {"fit_factors.factors.strategy": "ekfac"}
    assert found["nested"] == [found["parent"]] * 2
    assert (found["metrics"], found["fingerprint"], found["weights"]) == ({"accuracy": 0.9}, "f" * 64, "weights")

    # The large file went in parts of 10 MiB by addresses that the server signed, the small one through the server.
    keys = {key.rpartition("/")[2]: key for key in stack.keys("/factors/")}
    heads = {name: stack.s3.head_object(Bucket="whence-mlflow", Key=key) for name, key in keys.items()}
    assert {name: head["ContentLength"] for name, head in heads.items()} == SIZES
    assert heads["eigenvectors.safetensors"]["ETag"].endswith('-5"')
    log = server.log.read_text()
    assert log.count("/mpu/create/") == log.count("/mpu/complete/") == 1
    assert re.search(r"GET \S+/presigned/\S+/eigenvectors.safetensors", log), "and came back the same way"
    assert stack.postgres.query("open_to_all", "SELECT count(*) FROM runs") == "3"


def test_hosts_that_are_not_allowed_are_refused(server: Server) -> None:
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert requests.get(f"{server.uri}{path}", timeout=10).status_code == 200
    assert requests.get(f"{server.uri}{path}", headers={"Host": "evil.example"}, timeout=10).status_code == 403


def test_prometheus_reads_how_many_requests_were_answered_and_with_a_login_not_everybody_does(
    server: Server, guarded: Server
) -> None:
    requests.get(f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=5", timeout=10).raise_for_status()
    counted = requests.get(f"{server.uri}/metrics", timeout=10)
    counted.raise_for_status()
    [number] = re.findall(r'^mlflow_http_request_total\{method="GET",status="200"\} (\S+)$', counted.text, re.MULTILINE)
    assert float(number) >= 1
    assert requests.get(f"{guarded.uri}/metrics", timeout=10).status_code == 401
    known = (ADMIN["MLFLOW_TRACKING_USERNAME"], ADMIN["MLFLOW_TRACKING_PASSWORD"])
    assert requests.get(f"{guarded.uri}/metrics", auth=known, timeout=10).status_code == 200


def test_no_secret_is_on_a_command_line(guarded: Server) -> None:
    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    port = guarded.uri.rpartition(":")[2].encode()
    assert any(port in line for line in lines)
    for secret in SECRETS:
        assert not [line for line in lines if secret.encode() in line]


def test_a_wrong_password_is_refused_and_the_right_one_is_not(
    guarded: Server, make_config: Any, tmp_path: Path
) -> None:
    write_config(tmp_path, make_config, guarded.uri, "guarded")
    code = "from whence.config_file import load_config; from whence.tracking import check_tracking, stage_run\n"
    code += "check_tracking(load_config('config.yaml'))\n"
    code += "with stage_run(load_config('config.yaml'), 'train') as run: print(run.run_id)"
    nobody = client_process(tmp_path, code)
    wrong = client_process(tmp_path, code, **ADMIN | {"MLFLOW_TRACKING_PASSWORD": "guessed-password"})
    for refused in (nobody, wrong):
        assert refused.returncode != 0
        assert "TrackingError" in refused.stderr
        assert "MLFLOW_TRACKING_PASSWORD" in refused.stderr, "the way out is named"
        assert "guessed-password" not in refused.stderr
    right = client_process(tmp_path, code, **ADMIN)
    assert right.returncode == 0, right.stderr


DELETE_ONE = """
import sys
from pathlib import Path
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
experiment = client.create_experiment("gc")
Path("spectrum.txt").write_text("1 2 3")
kept, deleted = (client.create_run(experiment).info.run_id for _ in range(2))
for run in (kept, deleted):
    client.log_artifact(run, "spectrum.txt")
client.delete_run(deleted)
print(kept, deleted)
"""


def test_garbage_collection_removes_what_was_deleted_with_its_files(
    stack: Stack, guarded: Server, tmp_path: Path
) -> None:
    made = client_process(tmp_path, DELETE_ONE, guarded.uri, **ADMIN)
    assert made.returncode == 0, made.stderr
    kept, deleted = made.stdout.split()
    assert len(stack.keys(kept)) == len(stack.keys(deleted)) == 1
    # The CronJob has no credentials of the store: it has the server delete the files.
    database = stack.postgres.environment("guarded")
    settings = {
        **database,
        **ADMIN,
        "MLFLOW_TRACKING_URI": guarded.uri,
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://whence-mlflow",
        "MLFLOW_GC_OLDER_THAN": "1d",
    }
    early = mlflow_image.run(stack.programs, tmp_path, settings, "gc")
    assert early.returncode == 0, early.stderr
    assert len(stack.keys(deleted)) == 1, "it was deleted a moment ago only"
    late = mlflow_image.run(stack.programs, tmp_path, settings | {"MLFLOW_GC_OLDER_THAN": "0d"}, "gc")
    assert late.returncode == 0, late.stderr
    assert not [secret for secret in SECRETS if secret in early.stdout + early.stderr + late.stdout + late.stderr]
    assert stack.keys(deleted) == set()
    assert len(stack.keys(kept)) == 1
    rows = stack.postgres.query("guarded", "SELECT run_uuid FROM runs").split()
    assert kept in rows
    assert deleted not in rows


def test_no_secret_is_in_the_logs(stack: Stack, server: Server, guarded: Server) -> None:
    for log in (server.log.read_text(), guarded.log.read_text()):
        assert "/api/2.0/mlflow/" in log, "calls are logged"
        for secret in (*SECRETS, stack.swift.secret_key, quote(postgres_server.PASSWORD, safe="")):
            assert secret not in log


def test_upgrading_a_database_that_is_up_to_date_changes_nothing(stack: Stack, server: Server, tmp_path: Path) -> None:
    revision = "SELECT version_num FROM alembic_version"
    before = stack.postgres.query("open_to_all", revision)
    done = mlflow_image.run(stack.programs, tmp_path, stack.settings("open_to_all"), "upgrade")
    assert done.returncode == 0, done.stderr
    assert stack.postgres.query("open_to_all", revision) == before


def test_making_the_buckets_again_changes_nothing_and_a_wrong_key_is_an_error(stack: Stack) -> None:
    again = make_buckets(stack.programs, stack.swift.environment)
    assert again.returncode == 0
    assert {bucket["Name"] for bucket in stack.s3.list_buckets()["Buckets"]} >= {"whence-mlflow", "whence-pipelines"}
    assert again.stdout.count("is there") == 2
    wrong = make_buckets(stack.programs, stack.swift.environment | {"AWS_SECRET_ACCESS_KEY": "guessed"})
    assert wrong.returncode == 1
    assert "whence-s3" in wrong.stderr
    assert "guessed" not in wrong.stderr


def test_a_backup_of_the_database_is_whole_and_older_ones_are_cleared(stack: Stack, tmp_path: Path) -> None:
    """By the very script of the CronJob, with its folders those of this test."""
    backup = ROOT / "k8s" / "components" / "backup"
    spec = yaml.safe_load((backup / "backup.yaml").read_text())["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [dump], [store] = spec["initContainers"], spec["containers"]
    (tmp_path / "POSTGRES_PASSWORD").write_text(postgres_server.PASSWORD)
    script = dump["args"][0].replace("/run/secrets/postgres", str(tmp_path)).replace("/dump", str(tmp_path))
    command = [stack.programs / "python", backup / "store.py", tmp_path / "mlflow.dump", "0"]
    assert store["command"][2:] == ["/dump/mlflow.dump", "30"]
    stack.postgres.create("saved")
    stack.postgres.query("saved", "CREATE TABLE runs AS SELECT generate_series(1, 1000) AS id")
    environment = stack.settings("saved") | {"PATH": f"{stack.postgres.programs}:{os.environ['PATH']}"}
    del environment["PGPASSWORD"]
    for _ in "12":
        subprocess.run([*dump["command"], script], env=environment, check=True, timeout=60)
        subprocess.run(command, env=environment, check=True, timeout=60)
        time.sleep(2)  # the store tells times by the second
    [key] = stack.keys("postgres-backups/")
    stack.s3.download_file("whence-mlflow", key, str(tmp_path / "back"))
    stack.postgres.create("restored")
    restore = [stack.postgres.programs / "pg_restore", "--no-owner", "--dbname=restored", tmp_path / "back"]
    subprocess.run(restore, env=os.environ | stack.postgres.environment("restored"), check=True, timeout=60)
    assert stack.postgres.query("restored", "SELECT count(*), sum(id) FROM runs") == "1000|500500"
    (tmp_path / "mlflow.dump").write_bytes(b"")
    assert subprocess.run(command, env=environment, timeout=60).returncode != 0
    assert stack.keys("postgres-backups/") == {key}, "an empty dump takes no good one's place"
