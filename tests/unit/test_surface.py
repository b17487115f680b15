"""What users learn by heart - settings, commands, options - is frozen in a file, so that its growth is a decision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from whence.cli import build_app
from whence.config import Config
from whence.config.cluster import StageResources

FILE = Path(__file__).resolve().parents[1] / "data" / "surface.txt"


def settings(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A line per setting: its type and bounds as JSON schema has them, and its default."""
    schema = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
            continue
        kind = {key: value for key, value in schema[name].items() if key not in ("title", "description", "default")}
        default = "" if field.is_required() else f" = {json.dumps(field.get_default(call_default_factory=True))}"
        yield f"{prefix}{name}: {json.dumps(kind)}{default}"


def commands(command: Any, name: str) -> Iterator[str]:
    """A line per command and one per option of it: ``whence champion set VERSION``, ``whence run --verbose``."""
    arguments = [one.name.upper() for one in command.params if one.param_type_name == "argument"]
    yield " ".join([name, *arguments])
    for option in command.params:
        if option.param_type_name == "option" and option.name != "help":
            marks = {"required": option.required, "repeatable": option.multiple, "flag": option.is_flag}
            marked = "".join(f" ({mark})" for mark, holds in marks.items() if holds)
            yield f"  {' '.join([*option.opts, *option.secondary_opts])}{marked}"
    for inner_name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {inner_name}")


def surface() -> str:
    lines = ["# Written by `make surface`.", "", "# Settings"]
    lines += [*settings(Config), *settings(StageResources, "cluster.stages.STAGE."), "", "# Commands"]
    return "\n".join([*lines, *commands(typer.main.get_command(build_app()), "whence")]) + "\n"


def test_settings_commands_and_options_are_those_that_were_decided() -> None:
    assert surface().splitlines() == FILE.read_text(encoding="utf-8").splitlines(), (
        "if this is meant, `make surface` writes it down; mention it in CHANGELOG.md"
    )


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
