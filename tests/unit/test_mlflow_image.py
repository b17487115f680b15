"""What `mlflow/` promises: no root, and clear words before anything starts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "mlflow"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
DATABASE = {"PGHOST": "db", "PGPASSWORD": "x"}
BUCKET = {"MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket"}
HOSTS = {"MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow:5000"}


def test_the_image_runs_without_root_from_a_pinned_base_and_watches_its_health() -> None:
    [base] = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE}"}
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    assert "/health" in DOCKERFILE.split("HEALTHCHECK")[1]
    assert not re.search(r"^(ENV|ARG).*(PASSWORD|SECRET)", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "variables", "said"),
    [
        ("server", {}, "PGHOST"),
        ("server", {"PGHOST": "db"}, "PGPASSWORD is empty"),
        ("server", {"PGHOST": "db", "PGPASSWORD_FILE": "/absent"}, "/absent cannot be read"),
        ("server", DATABASE, "MLFLOW_ARTIFACTS_DESTINATION must be a bucket"),
        ("server", DATABASE | {"MLFLOW_ARTIFACTS_DESTINATION": "/tmp/x"}, "found '/tmp/x'"),
        ("server", DATABASE | BUCKET, "MLFLOW_SERVER_ALLOWED_HOSTS is empty"),
        ("server", DATABASE | BUCKET | HOSTS | {"MLFLOW_BASIC_AUTH": "true"}, "MLFLOW_AUTH_ADMIN_USERNAME is empty"),
        ("gc", DATABASE | BUCKET, "MLFLOW_TRACKING_URI is empty"),
        ("settle", {}, "MLFLOW_TRACKING_URI is empty"),
        ("settle", {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, "KF_PIPELINES_ENDPOINT is empty"),
        ("upgrade", {}, "PGHOST"),
    ],
)
def test_a_missing_setting_is_named_at_once(command: str, variables: dict[str, str], said: str) -> None:
    done = subprocess.run(
        [str(FOLDER / "entrypoint.sh"), command],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 64, done.stderr
    assert said in done.stderr
    assert "PGPASSWORD=x" not in done.stderr


def test_the_address_of_the_server_and_telemetry_are_what_they_should_be(tmp_path: Path) -> None:
    fake = tmp_path / "mlflow"
    fake.write_text('#!/bin/sh\necho "$@"\nenv\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [str(FOLDER / "entrypoint.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **DATABASE, **BUCKET, **HOSTS, "POD_IP": "10.1.2.3"},
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    arguments, *lines = done.stdout.splitlines()
    assert "--host 0.0.0.0 --port 5000" in arguments
    assert "--allowed-hosts mlflow:5000,10.1.2.3:5000 " in arguments
    assert "--serve-artifacts --artifacts-destination s3://bucket" in arguments
    assert {"MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true", "PGPASSWORD=x"} <= set(lines)
