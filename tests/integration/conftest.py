"""Real servers, started once a session and only for tests that ask for them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import mlflow_server
import pytest
from absent import absent
from packages import PackagesUnavailable
from swift import Swift, SwiftUnavailable, running


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A running S3 server; tests that need it are skipped where it cannot be installed."""
    try:
        with running(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except (PackagesUnavailable, SwiftUnavailable) as error:
        absent(f"an S3 server: {error}")


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of its own for one test, and a client that may use it."""

    name: str
    client: Any

    def put(self, key: str, content: bytes) -> str:
        """Store an object and return its ``s3://`` address."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content)
        return f"s3://{self.name}/{key}"

    def contents(self, prefix: str) -> dict[str, str]:
        """SHA-256 of every object of an uploaded folder, which are those that its manifest names."""
        checksums = {}
        for item in self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", []):
            body = self.client.get_object(Bucket=self.name, Key=item["Key"])["Body"]
            checksums[item["Key"].removeprefix(prefix)] = hashlib.file_digest(io.BufferedReader(body), "sha256")
        del checksums["manifest.json"]
        manifest = json.loads(self.client.get_object(Bucket=self.name, Key=f"{prefix}manifest.json")["Body"].read())
        found = {name: checksum.hexdigest() for name, checksum in checksums.items() if name in manifest["files"]}
        assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == found
        return found


@pytest.fixture
def aws(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> Swift:
    """The environment as a user sets it for the server, without what the machine itself may have configured."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name, value in swift.environment.items():
        monkeypatch.setenv(name, value)
    return swift


@pytest.fixture
def bucket(aws: Swift) -> Bucket:
    client = boto3.Session().client("s3")
    name = f"test-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(name, client)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow_server.MlflowProcess]:
    """A tracking server, which the session's tests share: each has an experiment and a registered model of its own."""
    with mlflow_server.running(tmp_path_factory.mktemp("mlflow")) as process:
        yield process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, an empty one; no pipeline run is around."""
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, folder: Path) -> str:
    """Both kinds of tracking address: a sqlite file, and a server."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("empty_database"), folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"
    process: mlflow_server.MlflowProcess = request.getfixturevalue("server")
    return process.uri
