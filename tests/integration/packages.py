"""Servers' packages in virtual environments of their own, made on first use and kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from filelock import FileLock

CACHE = Path(__file__).resolve().parents[2] / ".cache"
UV = Path(sys.executable).with_name("uv")


class PackagesUnavailable(Exception):
    """They cannot be installed here."""


def programs_of(name: str, *packages: str) -> Path:
    """The folder of programs of the environment ``name``; ``packages`` are arguments of ``uv pip install``.

    Raises:
        PackagesUnavailable: uv cannot install them.
    """
    home = CACHE / name
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):
        if not (home / ".complete").exists():
            _uv("venv", "--clear", "--python", sys.executable, str(home))
            _uv("pip", "install", "--python", str(home), *packages)
            _uv("pip", "check", "--python", str(home))
            (home / ".complete").touch()
    return home / "bin"


def _uv(*arguments: str) -> None:
    done = subprocess.run([UV, "--quiet", *arguments], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise PackagesUnavailable(f"uv {' '.join(arguments[:2])}: {(done.stdout + done.stderr).strip()[-500:]}")
