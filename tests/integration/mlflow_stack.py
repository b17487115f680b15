"""The servers that MLflow stands on in tests, and processes that know MLflow and nothing of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from mlflow_image import ROOT
from postgres_server import Postgres
from swift import Swift

BUCKETS = ROOT / "k8s" / "components" / "mlflow" / "buckets.py"
NAMES = BUCKETS.with_suffix(".json")


@dataclass(frozen=True)
class Stack:
    """Everything the servers stand on."""

    programs: Path
    postgres: Postgres
    swift: Swift

    @property
    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.swift.endpoint,
            aws_access_key_id=self.swift.access_key,
            aws_secret_access_key=self.swift.secret_key,
            region_name="us-east-1",
        )

    def settings(self, database: str) -> dict[str, str]:
        return {
            **self.postgres.environment(database),
            **self.swift.environment,
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://whence-mlflow",
        }

    def keys(self, part: str) -> set[str]:
        """Objects of the bucket whose key has ``part`` in it."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket="whence-mlflow")
        return {entry["Key"] for page in pages for entry in page.get("Contents", []) if part in entry["Key"]}


def make_buckets(programs: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As the server's pod does it at its start."""
    command = [str(programs / "python"), str(BUCKETS), str(NAMES)]
    clean = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)


def client_process(folder: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Code in a process that knows the tracking server and nothing of the store."""
    hidden = ("AWS_", "MLFLOW_", "KFP_", "PG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
