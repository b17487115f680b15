"""Give image builds the package index of this machine: its pip configuration, its certificates, its local folders.

Prints builder options, one a line. The configuration goes in as build secrets, folders as mounts below /run, so that
nothing of this machine is left in an image.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

SECRET = "canary-5f1d0c7a"  # stands for an index password; the tests look for it in the images

TORCH_INDEX = "https://download.pytorch.org/whl/cpu/torch/"


def main(folder: Path) -> None:
    """Write the secrets to ``folder`` and print the options."""
    mounts: dict[str, str] = {}
    lines = ["[global]", f"# password {SECRET}"]
    for name, value in pip_settings().items():
        lines.append(f"{name} = {' '.join(inside(word, mounts) for word in value.split())}")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"--secret=id=pip,src={folder / 'pip.conf'}")
    certificates = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if certificates and Path(certificates).is_file():
        print(f"--secret=id=ca,src={certificates}")
    for source, target in mounts.items():
        print(f"--volume={source}:{target}:ro")
    if not answers(TORCH_INDEX):
        print("--build-arg=CPU_TORCH_INDEX=https://pypi.org/simple")  # or what pip is told here instead of it


def answers(address: str) -> bool:
    """Whether somebody serves the address."""
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def pip_settings() -> dict[str, str]:
    """Where pip looks for packages here: the settings of ``pip config list`` that say so."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found = re.findall(r"^[\w:]+\.(index-url|extra-index-url|find-links|trusted-host)='(.*)'$", listed, re.MULTILINE)
    return {name: value.replace(r"\n", " ") for name, value in found}


def inside(place: str, mounts: dict[str, str]) -> str:
    """The place as the build sees it; folders of this machine are added to ``mounts``."""
    path = place.removeprefix("file://")
    if not path.startswith("/") or not Path(path).is_dir():
        return place
    # An index of files links to its files with relative paths, so what is beside it comes along.
    root = str(Path(path).parent) if place != path else path
    target = mounts.setdefault(root, f"/run/packages/{len(mounts)}")
    return place.replace(root, target, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
