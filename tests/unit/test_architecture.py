"""ARCHITECTURE.md names the layers that import-linter checks, and files that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_layers_are_those_that_are_checked() -> None:
    [checked] = [
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    block = PAGE.partition("## Layers")[2].split("```")[1]
    shown = [re.split(r"\s{2,}", line)[0] for line in block.strip().splitlines()]
    assert shown == [layer.replace("whence.", "") for layer in checked]


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"`((?:whence|pipelines|tests|docs|configs|components)/[\w./-]*)`", PAGE)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
