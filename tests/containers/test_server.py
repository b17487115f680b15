"""The tracking server's image, with a real PostgreSQL and a real S3 server, as harshly as Kubernetes runs it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import postgres_server
import pytest
import swift
from conftest import HARDENED, SERVER, engine, image_of
from mlflow_stack import Stack, client_process, make_buckets

SETTINGS = [option for option in HARDENED if not option.startswith("--network")] + ["--network=host", "--memory=1500m"]
LOG_AND_READ = """
import sys
from pathlib import Path
import mlflow
from mlflow import MlflowClient

mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
experiment = client.create_experiment("image")
Path("spectrum.txt").write_text("1 2 3")
kept, deleted = (client.create_run(experiment).info.run_id for _ in range(2))
for run in (kept, deleted):
    client.log_artifact(run, "spectrum.txt")
client.delete_run(deleted)
print(kept, deleted, Path(mlflow.artifacts.download_artifacts(run_id=kept, artifact_path="spectrum.txt")).read_text())
"""


@dataclass(frozen=True)
class Running:
    """A server in its container."""

    stack: Stack
    container: str
    uri: str
    options: list[str]

    def health(self) -> int:
        """The exit status of the image's own HEALTHCHECK, in the container."""
        return engine("exec", self.container, *health_check()).returncode


def health_check() -> list[str]:
    """The command of the image's HEALTHCHECK, which docker and podman show in different places."""
    said = image_of(SERVER).inspect()
    [kind, *command] = (said["Config"].get("Healthcheck") or said["Healthcheck"])["Test"]
    assert kind == "CMD"
    return command


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    with postgres_server.running() as postgres, swift.running(folder) as store:
        stack = Stack(Path(sys.executable).parent, postgres, store)
        assert make_buckets(stack.programs, store.environment).returncode == 0
        postgres.create("mlflow")
        settings = stack.settings("mlflow") | {
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(port),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:{port}",
            "MLFLOW_TRACKING_URI": f"http://localhost:{port}",  # for gc
            "MLFLOW_GC_OLDER_THAN": "0d",
        }
        options = [*SETTINGS, *(f"--env={name}={value}" for name, value in settings.items())]
        container = engine("run", "--detach", *options, image_of(SERVER).name, check=True).stdout.strip()
        try:
            running = Running(stack, container, f"http://localhost:{port}", options)
            deadline = time.monotonic() + 120
            while running.health() != 0:
                log = engine("logs", container)
                assert time.monotonic() < deadline, log.stdout + log.stderr
                time.sleep(0.5)
            yield running
        finally:
            engine("rm", "--force", container)


def test_it_is_healthy_only_while_it_serves(server: Running) -> None:
    assert server.health() == 0
    assert image_of(SERVER).run(*health_check()).returncode != 0


def test_a_client_without_credentials_logs_and_reads_and_what_it_deletes_is_collected(
    server: Running, tmp_path: Path
) -> None:
    done = client_process(tmp_path, LOG_AND_READ, server.uri)
    assert done.returncode == 0, done.stderr
    kept, deleted, read = done.stdout.split(maxsplit=2)
    assert read.strip() == "1 2 3"
    assert len(server.stack.keys(kept)) == len(server.stack.keys(deleted)) == 1
    collected = engine("run", "--rm", *server.options, image_of(SERVER).name, "gc")
    assert collected.returncode == 0, collected.stderr
    assert (len(server.stack.keys(kept)), len(server.stack.keys(deleted))) == (1, 0)
    assert server.stack.postgres.query("mlflow", "SELECT run_uuid FROM runs") == kept


def test_it_says_what_it_lacks() -> None:
    said = image_of(SERVER).run()
    assert said.returncode == 64
    assert "no database" in said.stderr
