"""axe-core, the accessibility checker, from npm: fetched once per machine into a folder of the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from absent import absent

VERSION = "4.14.1"


def axe_source() -> str:
    """The script that checks a page; npm verifies what it fetches by the registry's checksum."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whence-tests" / f"axe-core-{VERSION}"
    script = cache / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            absent("npm, which fetches axe-core")
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(cache)]
        fetched = subprocess.run([*command, f"axe-core@{VERSION}"], capture_output=True, text=True)
        if fetched.returncode:
            absent(f"axe-core {VERSION}: {fetched.stderr[-300:]}")
    return script.read_text(encoding="utf-8")
