"""One run of the demo, as a user would start it, shared by the tests that look at what came out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from whence.cli import main

WHENCE = Path(sys.executable).with_name("whence")


@dataclass(frozen=True)
class Folder:
    """A folder in which somebody works with Whence."""

    path: Path

    def whence(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            self.command(*arguments), cwd=self.path, env=self.environment, capture_output=True, text=True
        )

    def whence_here(self, *arguments: object) -> int:
        """The same in this process, which has imported everything; its exit code."""
        with contextlib.chdir(self.path), pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    def kill_once(self, reached: Callable[[], object], *arguments: str) -> None:
        """Start the command, and kill it with all its processes as soon as ``reached`` is true."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while not reached():
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline, "not there after five minutes"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def command(self, *arguments: str) -> list[str]:
        return [str(WHENCE), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KFP_", "WHENCE_"))
        }

    @property
    def run(self) -> Path:
        """The folder of the last run."""
        return (self.path / "whence-output" / "latest").resolve()

    def artifact(self, stage: str, name: str) -> Path:
        """An output of a stage of the last run."""
        return self.run / "artifacts" / stage / name

    def states(self) -> dict[str, str]:
        """The last state of each stage of the last run."""
        return {event["stage"]: event["state"] for event in self.events()}

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The embedded default, run once."""
    folder = Folder(tmp_path_factory.mktemp("demo"))
    finished = folder.whence("run", "--profile", "demo")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (folder.path / "printed.txt").write_text(finished.stdout, encoding="utf-8")
    return folder
