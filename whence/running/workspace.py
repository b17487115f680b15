"""Where a stage writes, and how finished work is reused.

With ``general.work_dir`` set, a stage works in ``<work_dir>/<stage>-<key>/`` where the key is a fingerprint of
everything that decides its result: the library's code, the settings it reads and the content of its inputs. A stage
that was killed is resumed from its scratch files (checkpoints, parts) there; one that finished is not run again: its
files are verified against their checksums and linked to where the pipeline wants them. Of two runs that would do the
same work at once, the second waits for the first and reuses its result.
Without a work folder the outputs are written in place and nothing is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import whence
from whence.files import digest_of, digests, link_tree, write_json
from whence.running.lineage import content_digests

logger = logging.getLogger(__name__)

DONE = "done.json"
LOCK = "lock"


@dataclass(frozen=True)
class Workspace:
    """The folders of one stage run: ``outputs`` by name while working, and ``scratch`` for what need not be kept."""

    outputs: dict[str, Path]
    scratch: Path
    destinations: dict[str, Path] = field(repr=False)
    key: str | None = None  # None where nothing is kept

    @classmethod
    def open(cls, work_dir: str, stage: str, key: str, destinations: Mapping[str, Path]) -> Workspace:
        """Where work of this key is kept."""
        folder = Path(work_dir) / f"{stage}-{key[:16]}"
        (folder / "outputs").mkdir(parents=True, exist_ok=True)
        outputs = {name: folder / "outputs" / name for name in destinations}
        return cls(outputs, folder / "scratch", dict(destinations), key)

    @classmethod
    def in_place(cls, stage: str, destinations: Mapping[str, Path]) -> Workspace:
        """One that keeps nothing, and so takes no key: reading all inputs for it may take minutes."""
        for path in destinations.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        return cls(dict(destinations), Path(tempfile.mkdtemp(prefix=f"whence-{stage}-")), dict(destinations))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; wait while another process holds it.

        The operating system releases the lock when the process ends, however it ends.
        """
        if self.key is None:
            yield
            return
        with open(self.scratch.parent / LOCK, "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("another run is doing the same work in %s; waiting for it", self.scratch.parent)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def finished(self) -> tuple[dict[str, float], dict[str, Any]] | None:
        """Metrics and plain results of finished, undamaged work; None when it has to be done (again)."""
        if self.key is None:
            return None
        try:
            record = json.loads(self._done_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if record["key"] != self.key or record["files"] != self._checksums():
            self._done_file.unlink()
            return None
        return record["metrics"], record["returns"]

    def finish(self, metrics: Mapping[str, float], returns: Mapping[str, Any]) -> None:
        """Record the outputs as complete (atomically, last) and drop the scratch files."""
        if self.key is not None:
            files = self._checksums()
            write_json(
                self._done_file,
                {"key": self.key, "metrics": dict(metrics), "returns": dict(returns), "files": files},
            )
        shutil.rmtree(self.scratch, ignore_errors=True)

    def publish(self) -> None:
        """Put the outputs where the pipeline wants them: hard links on one filesystem, copies across two."""
        if self.key is None:
            return
        for name, source in self.outputs.items():
            link_tree(source, self.destinations[name])

    @property
    def _done_file(self) -> Path:
        return self.scratch.parent / DONE

    def _checksums(self) -> dict[str, dict[str, str]]:
        return {name: digests(path) for name, path in self.outputs.items()}


def stage_key(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """Fingerprint of what decides a stage's result: code, settings and the content of the inputs (sha256, hex)."""
    parts = {
        "stage": stage,
        "code": code_digest(),
        "settings": dict(settings),
        "inputs": {name: content_digests(path) for name, path in inputs.items()},
    }
    return digest_of(parts)


@cache
def code_digest() -> str:
    """Digest of the installed library's sources: work of an older version, or of edited code, is not reused."""
    root = Path(whence.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
