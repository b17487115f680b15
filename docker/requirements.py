"""Write the pinned requirements of the images: ``docker/requirements/*.txt`` from ``layers.toml`` and the project.

Everything is resolved once, together, and each file takes its part of it, so that images share layers and no two of
them hold different versions of a package. Pins stay as they are until ``--upgrade`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "requirements"
PROJECT = HERE.parents[1] / "pyproject.toml"
LAYERS = HERE / "layers.toml"
LOCK = HERE / "lock.txt"

PYTHON = "3.11"
PLATFORM = "x86_64-manylinux_2_28"
INDEX = "https://pypi.org/simple"
# Which of these a build of torch needs is the build's own affair: nothing for CPUs.
CUDA = re.compile(r"(cuda|nvidia|triton)\b")
SAME_VERSION = {"mlflow-skinny": "mlflow"}  # released together


def main() -> None:
    """Resolve and write; needs uv and the package index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions of what is not pinned")
    upgrade = parser.parse_args().upgrade
    contents, build = image_contents(), _project()["build-system"]["requires"]
    LOCK.touch()
    everything = set().union(*contents.values(), build)
    with tempfile.TemporaryDirectory() as scratch:
        pins = Path(scratch, "pins.txt")
        pins.write_text("\n".join(direct_pins().values()), encoding="utf-8")
        lock = _resolve(everything, pins, before="" if upgrade else LOCK.read_text(encoding="utf-8"))
        pins.write_text("\n".join(lock), encoding="utf-8")
        files = {name: _resolve(packages, pins) for name, packages in contents.items()}
        files["build"] = _resolve(build, pins)
    files = {name: [line for line in lines if not CUDA.match(line)] for name, lines in files.items()}
    files |= {"cuda": [line for line in lock if CUDA.match(line)], "lock": lock, **alone()}
    LOCK.write_text("\n".join(lock), encoding="utf-8")  # the header tells of what is in it
    header = ["# Written by `make requirements`; edit layers.toml or pyproject.toml.", f"# inputs: {inputs_digest()}"]
    for name, lines in files.items():
        (HERE / f"{name}.txt").write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")


def image_contents() -> dict[str, set[str]]:
    """The packages asked for in each layer and stage, with those of the layers below."""
    known = _layers()

    def collect(table: dict[str, Any]) -> set[str]:
        below = collect(known[table["on"]]) if "on" in table else set()
        return below | set(table.get("packages", []))

    return {name: collect(table) for name, table in known.items()}


def alone() -> dict[str, list[str]]:
    """What a layer installs without dependencies, by the name of its file."""
    pins = direct_pins()
    tables = {f"{name}-alone": table["alone"] for name, table in _layers().items() if "alone" in table}
    return {name: [pins.get(package, package) for package in packages] for name, packages in tables.items()}


def direct_pins() -> dict[str, str]:
    """The project's own requirements, by package: ``{"torch": "torch==2.13.0", ...}``."""
    project = _project()["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["wandb"]]
    pins = {normal(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]): line for line in lines}
    return pins | {name: pins[other].replace(other, name, 1) for name, other in SAME_VERSION.items()}


def inputs_digest() -> str:
    """sha256 (hex) of everything that decides the files: a file with another one in its header is stale.

    The project's pins of packages that no image holds decide nothing.
    """
    held = {normal(line.partition("==")[0]) for line in LOCK.read_text(encoding="utf-8").split("\n")}
    pins = {name: line for name, line in direct_pins().items() if name in held}
    inputs = [_layers(), pins, alone(), _project()["build-system"], PYTHON, PLATFORM]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def normal(name: str) -> str:
    """A package's name in the form that compares (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _layers() -> dict[str, Any]:
    tables = tomllib.loads(LAYERS.read_text(encoding="utf-8"))
    return {**tables["layers"], **tables["stages"]}


def _project() -> dict[str, Any]:
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))


def _resolve(packages: Iterable[str], constraints: Path, before: str = "") -> list[str]:
    """Pinned lines of ``packages`` and all they need; versions in ``before`` are kept where they can be."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, output = Path(scratch, "asked.in"), Path(scratch, "resolved.txt")
        asked.write_text("\n".join(sorted(packages)), encoding="utf-8")
        output.write_text(before, encoding="utf-8")
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-config"]
        command += ["--default-index", INDEX, "--python-version", PYTHON, "--python-platform", PLATFORM]
        command += ["--no-annotate", "--no-header", "--constraint", str(constraints)]
        subprocess.run([*command, str(asked), "--output-file", str(output)], check=True)
        return output.read_text(encoding="utf-8").split()


if __name__ == "__main__":
    main()
