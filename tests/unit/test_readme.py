"""What the README tells people to type exists, and what it shows is there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main

from whence.cli import build_app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+?)(?:\s{2,}#.*)?$", README, re.MULTILINE)
WHENCE = [command for command in COMMANDS if command.startswith("whence ")]


@pytest.mark.parametrize("command", WHENCE)
def test_every_command_is_one_that_whence_takes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "patents-files.yaml", tmp_path / "configs" / "my.yaml")
    chosen, (name, *arguments) = typer.main.get_command(build_app()), shlex.split(command)
    while arguments and arguments[0] in getattr(chosen, "commands", {}):
        name, *arguments = arguments
        chosen = chosen.commands[name]
    assert not (hasattr(chosen, "commands") and arguments and not arguments[0].startswith("-")), "no such command"
    chosen.make_context(name, arguments)  # raises for what the command does not take


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z-]+)", README))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_picture_and_folder_exists() -> None:
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README) + re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", README)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_has_commands() -> None:
    assert len(WHENCE) >= 3
