"""Other people's programs, each in an environment of its own, so that their requirements stay out of Whence's.

They are installed once, in ``$WHENCE_BENCH_CACHE`` or ``~/.cache/whence-benchmarks``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


class Unavailable(Exception):
    """A program could not be installed."""


def programs(name: str, *installs: Sequence[str]) -> Path:
    """The folder of the programs of the environment ``name``, installed on the first call.

    Args:
        installs: arguments of ``pip install``, one call after the other.

    Raises:
        Unavailable: pip failed; the message is its last line.
    """
    cache = Path(os.environ.get("WHENCE_BENCH_CACHE", Path.home() / ".cache" / "whence-benchmarks"))
    folder = cache / name
    done = folder / "installed"
    if not done.exists():
        print(f"installing {name} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        for arguments in installs:
            _pip(folder / "bin" / "python", *arguments)
        done.touch()
    return folder / "bin"


def _pip(python: Path, *arguments: str) -> None:
    try:
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *arguments], check=True, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        raise Unavailable((error.stderr.strip() or "pip failed").splitlines()[-1]) from error
