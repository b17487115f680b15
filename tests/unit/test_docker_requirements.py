"""The images' pinned requirements are those of the project: checked from the files, without the package index."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from whence.components import STAGES

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "requirements"
FILES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")}
PINS = {name: dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)) for name, text in FILES.items()}
LAYERS = tomllib.loads((FOLDER / "layers.toml").read_text(encoding="utf-8"))
TABLES = {**LAYERS["layers"], **LAYERS["stages"]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docker_requirements", ROOT / "docker" / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def direct() -> dict[str, Requirement]:
    """The project's own requirements by package."""
    project = PROJECT["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["wandb"], *PROJECT["build-system"]["requires"]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_made_of_the_current_inputs(name: str, generator: ModuleType) -> None:
    assert f"# inputs: {generator.inputs_digest()}\n" in FILES[name], "run `make requirements`"


def test_another_pin_in_the_project_makes_the_files_stale(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, text = generator.inputs_digest(), (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(generator, "PROJECT", tmp_path / "pyproject.toml")
    (tmp_path / "pyproject.toml").write_text(re.sub(r'"pandas==[\d.]+"', '"pandas==9.9.9"', text), encoding="utf-8")
    assert generator.inputs_digest() != before
    # What no image holds decides nothing.
    (tmp_path / "pyproject.toml").write_text(re.sub(r'"cronsim==[\d.]+"', '"cronsim==9.9.9"', text), encoding="utf-8")
    assert generator.inputs_digest() == before


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_one_exact_version(name: str) -> None:
    lines = [line for line in FILES[name].splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS[name]) > 0


@pytest.mark.parametrize("name", FILES)
def test_every_pin_of_the_project_holds(name: str) -> None:
    wanted = direct()
    wrong = {
        package: version
        for package, version in PINS[name].items()
        if package in wanted and not wanted[package].specifier.contains(version)
    }
    assert wrong == {}


def test_mlflow_s_client_is_of_the_same_release_and_kronfluence_that_of_the_makefile() -> None:
    assert PINS["common"]["mlflow-skinny"] == next(iter(direct()["mlflow"].specifier)).version
    assert f"kronfluence=={PINS['influence-alone']['kronfluence']} " in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_a_file_holds_what_is_asked_for_and_all_of_the_layer_below(name: str) -> None:
    table = TABLES[name]
    assert set(map(canonicalize_name, table.get("packages", []))) <= set(PINS[name])
    if "on" in table:
        assert PINS[table["on"]].items() <= PINS[name].items()


def test_no_two_images_hold_different_versions_of_a_package() -> None:
    for name in set(PINS) - {"lock"}:
        alone = name.endswith("-alone")
        assert alone or PINS[name].items() <= PINS["lock"].items(), name


def test_only_the_cuda_file_holds_cuda() -> None:
    cuda = re.compile(r"cuda-|nvidia-|triton$")
    holding = {name for name, pins in PINS.items() if any(cuda.match(package) for package in pins)}
    assert holding == {"cuda", "lock"}


def test_every_stage_has_its_file() -> None:
    assert set(STAGES) <= set(LAYERS["stages"])
    assert set(TABLES) <= set(FILES)
