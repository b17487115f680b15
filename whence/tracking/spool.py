"""A queue on disk for calls that could not be delivered: in order, nothing lost, nothing twice.

One folder per run: ``run.json`` says which run the calls belong to, ``calls.jsonl`` holds them, ``files/`` what they
carry, ``delivered`` how many have arrived. The writer holds a lock on the folder while it lives, so that only spools
whose writer has ended, even by kill -9, are taken over by somebody else. Knows nothing of MLflow.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from whence.files import link_or_copy, write_atomically

RUN, CALLS, FILES, DELIVERED, LOCK = "run.json", "calls.jsonl", "files", "delivered", "lock"


@dataclass(frozen=True)
class Call:
    """One thing to record; ``key`` is the same on every attempt, so that the receiver can tell a repetition."""

    name: str
    arguments: dict[str, Any]
    path: Path | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


class Spool:
    """The undelivered calls of one run."""

    def __init__(self, folder: Path, lock: TextIO) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def create(cls, root: Path, name: str, run: dict[str, Any]) -> Spool:
        """A new spool below ``root`` for the run that ``run`` describes (kept as JSON)."""
        folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        lock = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - held as long as the spool
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_atomically(folder / RUN, json.dumps(run, indent=1))  # last: a folder without it is not a spool yet
        return cls(folder, lock)

    @classmethod
    @contextmanager
    def abandoned(cls, root: Path) -> Iterator[list[Spool]]:
        """The spools below ``root`` that no living process writes or uploads, oldest first; locked meanwhile."""
        spools: list[Spool] = []
        try:
            for file in sorted(root.glob(f"*/{LOCK}")):
                lock = open(file, "w", encoding="utf-8")  # noqa: SIM115
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                    continue
                spools.append(cls(file.parent, lock))
            yield [spool for spool in spools if (spool.folder / RUN).exists()]
        finally:
            for spool in spools:
                spool.close()

    @property
    def run(self) -> dict[str, Any]:
        """The description given to :meth:`create`."""
        description: dict[str, Any] = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        return description

    def append(self, call: Call) -> None:
        """Keep a call, with a copy of the file or folder it carries, before this returns."""
        if call.path is not None:
            target = self.folder / FILES / call.key / call.path.name
            target.parent.mkdir(parents=True)
            if call.path.is_dir():
                shutil.copytree(call.path, target, copy_function=link_or_copy)
            else:
                link_or_copy(call.path, target)
        name = None if call.path is None else call.path.name
        line = json.dumps({"name": call.name, "arguments": call.arguments, "path": name, "key": call.key})
        with open(self.folder / CALLS, "ab", buffering=0) as stream:
            whole = stream.tell()
            try:
                stream.write(line.encode() + b"\n")
                os.fsync(stream.fileno())
            except OSError:  # a full disk must not leave half a line in front of the next one
                stream.truncate(whole)
                raise

    def pending(self) -> list[Call]:
        """The calls that have not arrived yet, in order."""
        try:
            lines = (self.folder / CALLS).read_text(encoding="utf-8").split("\n")[:-1]  # a torn last line has no end
        except FileNotFoundError:
            return []
        calls = [json.loads(line) for line in lines[self._delivered :]]
        files = self.folder / FILES
        return [Call(c["name"], c["arguments"], c["path"] and files / c["key"] / c["path"], c["key"]) for c in calls]

    def deliver(self, send: Callable[[Call], object]) -> int:
        """Hand every pending call to ``send`` and remove the spool; stops at the first exception, which it raises.

        A crash between sending and marking repeats one call on the next delivery: ``send`` must bear that.
        """
        count = 0
        for call in self.pending():
            send(call)
            count += 1
            write_atomically(self.folder / DELIVERED, str(self._delivered + 1))
            if call.path is not None:
                shutil.rmtree(self.folder / FILES / call.key)
        (self.folder / RUN).unlink()  # first: what is left of a half removed folder is no spool
        shutil.rmtree(self.folder)
        self.close()
        return count

    def close(self) -> None:
        """Let others take the spool over."""
        self._lock.close()

    @property
    def _delivered(self) -> int:
        file = self.folder / DELIVERED
        return int(file.read_text(encoding="utf-8")) if file.exists() else 0
