"""What the tests of the images share: their names, and the program that runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from whence import __version__
from whence.stages import stages

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))  # for its MLflow server

SERVER, SERVICE = "mlflow", "serve"  # the tracking server, and the page that answers questions
STAGES = list(stages())
INCLUDED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
HARDENED = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none", "--tmpfs=/tmp"]


@dataclass(frozen=True)
class Image:
    """The image of a stage, or of the tracking server."""

    stage: str
    name: str

    def run(self, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command (the default one when none is given) as harshly as a cluster may."""
        return engine("run", "--rm", *HARDENED, *options, self.name, *command)

    def shell(self, script: str, *options: str) -> str:
        """The output of a script that must succeed."""
        finished = self.run("sh", "-c", script, options=options)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def inspect(self) -> dict[str, Any]:
        """What the image says of itself."""
        return dict(json.loads(engine("image", "inspect", self.name, check=True).stdout)[0])


def groups_of(stage: str) -> set[str]:
    """The dependency groups in a stage's image: its own, and those that this one includes."""
    groups, name = set(), "serving" if stage == SERVICE else stages()[stage].group
    while name:
        groups.add(name)
        name = next((entry["include-group"] for entry in INCLUDED[name] if isinstance(entry, dict)), "")
    return groups


def engine(*arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    """docker or podman, away from the repository: podman leaves a note where it was started when memory ran out."""
    command = [os.environ["CONTAINER_ENGINE"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=os.environ["WHENCE_TEST_SCRATCH"])


def image_of(stage: str) -> Image:
    tag = __version__ if stage in (SERVER, SERVICE) else os.environ["WHENCE_TEST_TAG"]
    return Image(stage, f"{os.environ['WHENCE_IMAGE_REGISTRY']}/{stage.replace('_', '-')}:{tag}")


@pytest.fixture(params=STAGES)
def image(request: pytest.FixtureRequest) -> Image:
    """The image of each stage in turn."""
    return image_of(request.param)


@pytest.fixture(params=[*STAGES, SERVICE, SERVER])
def any_image(request: pytest.FixtureRequest) -> Image:
    """Each image in turn, those of the services included."""
    return image_of(request.param)
