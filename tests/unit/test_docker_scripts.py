"""The scripts around the images, where no container can run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from whence.components.images import image
from whence.errors import PipelineError
from whence.stages import stages

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


@pytest.mark.parametrize(("others", "ending", "status"), [(0, 0, 0), (0, 1, 1), (0, 77, 77), (2, 0, 2), (2, 1, 2)])
def test_ci_ends_as_the_container_tests_do_and_says_when_they_did_not_run(
    tmp_path: Path, others: int, ending: int, status: int
) -> None:
    containers, make = f"echo one error >&2; exit {ending}", f'[ "$1" != test ] || exit {others}'
    for name, body in (("tests/containers/run.sh", containers), ("bin/make", make), ("bin/apt-get", "")):
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
    assert ("one error" in ended.stdout) == (others == 0)


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


ENGINE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case $1 in
  image) echo "registry.example/team/any@sha256:$DIGEST" ;;
  push) while [ $# -gt 1 ]; do [ "$1" != --digestfile ] || printf sha256:%s "$DIGEST" > "$2"; shift; done ;;
esac
"""


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_pushed_images_are_signed_and_noted_by_digest_and_pipelines_take_them(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, log, noted = "a" * 64, tmp_path / "log", tmp_path / "images.txt"
    for name in (engine, "cosign"):
        (tmp_path / name).write_text(ENGINE)
        (tmp_path / name).chmod(0o755)
    settings = {"CONTAINER_ENGINE": engine, "REGISTRY": "registry.example/team", "TAG": "1.0", "PUSH": "1",
                "DIGESTS": str(noted), "COSIGN_KEY": "k8s://keys", "LOG": str(log), "DIGEST": digest,
                "PATH": f"{tmp_path}:{os.environ['PATH']}"}  # fmt: skip
    command = ["/bin/sh", ROOT / "docker/build.sh", "fit_factors", "gate"]
    built = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pinned = [f"registry.example/team/{name}:1.0@sha256:{digest}" for name in ("fit-factors", "gate")]
    assert noted.read_text().split() == pinned
    ran = log.read_text()
    assert f"cosign sign --yes --key k8s://keys {pinned[0]}" in ran
    assert "--build-arg STAGE=fit_factors --build-arg GROUP=influence --build-arg LAYER=influence" in ran
    assert "--build-arg STAGE=gate --build-arg GROUP=pages --build-arg LAYER=pages" in ran
    monkeypatch.setenv("WHENCE_IMAGE_REGISTRY", "registry.example/team")
    monkeypatch.setenv("WHENCE_IMAGE_TAG", "1.0")
    monkeypatch.setenv("WHENCE_IMAGE_DIGESTS", str(noted))
    assert image("fit_factors") == pinned[0]
    with pytest.raises(PipelineError, match=r"has no digest of registry.example/team/train:1.0; push it with DIGESTS="):
        image("train")


def test_the_builder_knows_every_stage_and_its_group(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(ENGINE)
    (tmp_path / "docker").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONTAINER_ENGINE": "docker", "LOG": str(tmp_path / "log")}
    subprocess.run(["/bin/sh", ROOT / "docker/build.sh"], env=os.environ | path | {"TAG": "1.0"}, check=True)
    built = re.findall(r"STAGE=(\w+) --build-arg GROUP=(\w+)", (tmp_path / "log").read_text())
    assert dict(built) == {stage.name: stage.group for stage in stages().values()} | {"serve": "serving"}
