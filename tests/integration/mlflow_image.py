"""What the image in `mlflow/` runs - its entrypoint and its pinned packages - without the image."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from packages import UV, programs_of

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINT = ROOT / "mlflow" / "entrypoint.sh"
LOCKED = ["export", "--quiet", "--frozen", "--no-hashes", "--only-group", "mlflow-server"]
START_SECONDS = 120


def install() -> Path:
    """The folder of programs with exactly the pinned packages, as the Dockerfile installs them; made once.

    Raises:
        PackagesUnavailable: they cannot be installed.
    """
    requirements = subprocess.check_output([UV, *LOCKED], cwd=ROOT, text=True)
    digest = hashlib.sha256(requirements.encode()).hexdigest()[:12]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        return programs_of(f"mlflow-{digest}", "--no-deps", "-r", file.name)


def environment(programs: Path, folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """What a container has: the image's variables and the given ones, and nothing of this process."""
    own = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "GIT_PYTHON_REFRESH": "quiet",
    }
    return own | dict(settings)


def run(programs: Path, folder: Path, settings: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """One of the entrypoint's commands, to its end."""
    return subprocess.run(
        [str(ENTRYPOINT), *command],
        env=environment(programs, folder, settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass(frozen=True)
class Server:
    """A running tracking server."""

    uri: str
    settings: dict[str, str]
    log: Path


@contextmanager
def serving(programs: Path, folder: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """The server for as long as the block lasts, on a free port that its allowed hosts name."""
    port = _free_port()
    given = {
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:{port}",
        **settings,
    }
    server = Server(f"http://localhost:{port}", given, folder / "server.log")
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            [str(ENTRYPOINT), "server"],
            env=environment(programs, folder, given),
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(server.uri):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"mlflow did not start:\n{server.log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _healthy(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=2).ok
    except requests.RequestException:
        return False


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port
