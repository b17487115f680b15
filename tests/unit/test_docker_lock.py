"""The lock is that of the project, and every image can be built from it: checked without the package index."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from whence.cli import KRONFLUENCE_MISSING
from whence.stages import stages

GROUPS = {name: stage.group for name, stage in stages().items()}
ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
UV = Path(sys.executable).with_name("uv")
CUDA = re.compile(r"(cuda|nvidia|triton)\b")


def locked(group: str) -> dict[str, str]:
    """Version by package of a dependency group, as the images install it."""
    command = [UV, "export", "--frozen", "--no-hashes", "--no-annotate", "--no-header", "--only-group", group]
    lines = subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL).splitlines()
    requirements = [Requirement(line) for line in lines]
    here = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in here}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_the_lock_is_of_the_current_project() -> None:
    command = [UV, "lock", "--check", "--offline", "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, f"run `make lock`: {checked.stderr}"


def test_the_lock_names_the_public_index_alone() -> None:
    hosts = set(re.findall(r"\w+://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


@pytest.mark.parametrize("group", sorted(set(GROUPS.values())))
def test_a_group_holds_what_it_names_and_all_of_the_groups_below(group: str) -> None:
    packages = locked(group)
    for entry in PROJECT["dependency-groups"][group]:
        below = locked(entry["include-group"]) if isinstance(entry, dict) else {}
        assert below.items() <= packages.items()
        assert isinstance(entry, dict) or names([entry]) <= packages.keys()
    assert "torchvision" not in packages
    assert ("torch" in packages) == any(CUDA.match(name) for name in packages) == (group not in {"pages", "common"})


def test_kronfluence_is_locked_with_all_it_declares_but_torchvision() -> None:
    [override] = PROJECT["tool"]["uv"]["dependency-metadata"]
    declared = [line for line in importlib.metadata.requires("kronfluence") or [] if "extra ==" not in line]
    assert names(override["requires-dist"]) == names(declared) - {"torchvision"}
    # pip installs it alone, beside the project.
    assert names(override["requires-dist"]) <= names(PROJECT["project"]["dependencies"])
    assert KRONFLUENCE_MISSING.endswith(f"kronfluence=={locked('influence')['kronfluence']}")


def test_every_stage_is_built_from_its_group_on_a_layer_that_holds_no_more() -> None:
    environment = os.environ | {"CONTAINER_ENGINE": "echo", "TORCH": "cuda", "TAG": "1", "REGISTRY": "r"}
    built = subprocess.check_output([ROOT / "docker/build.sh"], env=environment, text=True)
    lines = [line for line in built.splitlines() if line.startswith("build ") and "STAGE=" in line]
    arguments = [dict(re.findall(r"--build-arg (\w+)=(\S+)", line)) for line in lines]
    assert {one["STAGE"]: one["GROUP"] for one in arguments} == GROUPS | {"serve": "serving"}
    targets = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for one in arguments:
        assert one["LAYER"] in targets
        assert locked(one["LAYER"]).items() <= locked(one["GROUP"]).items()
        assert one["TORCH"] == ("cpu" if one["STAGE"] == "prepare" else "cuda")


def test_a_stage_that_does_not_exist_is_refused() -> None:
    environment = os.environ | {"CONTAINER_ENGINE": "echo", "TAG": "1"}
    refused = subprocess.run([ROOT / "docker/build.sh", "fit"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "there is no stage fit; stages are compare find_champion" in refused.stderr


def test_a_run_without_kronfluence_says_first_how_to_install_it(tmp_path: Path) -> None:
    hidden = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kronfluence":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Hide())
from whence.cli import main
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", hidden, "run", "--profile", "demo"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == f"Error: {KRONFLUENCE_MISSING}\n"
    assert list(tmp_path.iterdir()) == []
