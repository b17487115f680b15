"""The scripts around the images, where no container can run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment with neither docker, podman nor apt-get."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "env", "id", "mktemp", "rm"):
        (programs / name).symlink_to(str(shutil.which(name)))
    unset = {"CONTAINER_ENGINE", "PATH"}
    return {name: value for name, value in os.environ.items() if name not in unset} | {"PATH": str(programs)}


def test_without_an_engine_the_container_tests_say_so_and_do_not_pass(bare: dict[str, str]) -> None:
    ended = subprocess.run([ROOT / "tests/containers/run.sh"], env=bare, capture_output=True, text=True)
    assert ended.returncode == 77
    assert "container tests cannot run: podman, runc and debootstrap are not installed" in ended.stderr


@pytest.mark.parametrize("part", ["build", "test"])
@pytest.mark.parametrize("status", [0, 1, 77])
def test_ci_ends_as_the_container_tests_do_and_says_when_they_did_not_run(
    tmp_path: Path, part: str, status: int
) -> None:
    run = f"[ $1 != {part} ] || {{ echo {part} ends; exit {status}; }}"
    for name, body in (("tests/containers/run.sh", run), ("bin/make", ""), ("bin/apt-get", "")):
        script = tmp_path / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    ended = subprocess.run([tmp_path / ".ci/run"], env=environment, capture_output=True, text=True)
    assert ended.returncode == status
    assert ("the container tests could not run" in ended.stderr) == (status == 77)
    assert (f"{part} ends" in ended.stdout + ended.stderr) == (part == "test" or status != 0)


def test_images_are_not_built_without_an_engine(bare: dict[str, str]) -> None:
    ended = subprocess.run(["/bin/sh", ROOT / "docker/build.sh"], env=bare, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "neither a docker daemon nor podman is here" in ended.stderr


def test_a_tag_is_of_one_content(tmp_path: Path) -> None:
    copied = ("docker", "whence", "pyproject.toml", "uv.lock", "LICENSE")
    for name in copied:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)

    def tag(**variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TORCH"} | variables
        return subprocess.check_output([tmp_path / "docker/tag.sh"], env=environment, text=True).strip()

    first = tag()
    assert re.fullmatch(r"\d+\.\d+\.\d+-[0-9a-f]{12}", first)
    assert tag(TORCH="cpu") == f"{first}-cpu"
    (tmp_path / "whence" / "errors.py").touch()
    assert tag() == first
    (tmp_path / "whence" / "errors.py").write_text("# other code\n")
    assert tag() != first
