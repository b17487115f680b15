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
SITE = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
CLUSTER = (ROOT / "k8s" / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    return re.findall(r"^\$ (.+?)(?:\s{2,}#.*)?$", text, re.MULTILINE)


WHENCE = sorted({command for command in commands(README + SITE + CLUSTER) if command.startswith("whence ")})


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


@pytest.mark.parametrize("section", ["From an empty namespace to a finished run", "On kind"])
def test_a_cluster_takes_ten_commands_at_most_and_they_end_with_a_run(section: str) -> None:
    last_block = CLUSTER.partition(f"## {section}")[2].partition("\n## ")[0].rpartition("```console")[2]
    taken = commands(last_block)
    assert 0 < len(taken) <= 10
    assert re.match(r"whence submit .* --follow$", taken[-1])


def test_the_overlays_are_those_that_the_cluster_page_lists() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \|", CLUSTER, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z-]+)", README))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_picture_and_folder_exists() -> None:
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README) + re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", README)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_has_commands() -> None:
    assert len(WHENCE) >= 3
