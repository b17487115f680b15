"""Files that a crash leaves whole: atomic writes, links in place of copies, digests of contents, room for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whence.errors import ResourceError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well: there is the old file or the new.

    The name has the process in it, so that two processes may write the same file at once and the last one wins.

    Args:
        path: the file to write; its folder is made where it is missing.
        sync: wait until the content is on the disk. False where a checksum is looked at before the file is used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
        if sync:
            _sync(path.parent)  # the name, too
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, *, sync: bool = True) -> None:
    """Write ``content`` (text as UTF-8) so that a crash leaves either the old file or the whole new one."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value of plain types as JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary, for ``object_pairs_hook``: of a key given twice, one value would be lost.

    Raises:
        ValueError: naming such a key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link on one filesystem, a copy across two; ``target`` must not be there."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """Put the file or folder ``source`` at ``target``, in place of what is there, without copying where links work."""
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link_or_copy)
    else:
        target.unlink(missing_ok=True)
        link_or_copy(source, target)


def point(link: Path, target: str | Path) -> None:
    """Make ``link`` a symbolic link to ``target``, whatever it was before, also when others do so at the same time."""
    with replacing(link, sync=False) as temporary:
        temporary.symlink_to(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(path: Path) -> dict[str, str]:
    """sha256 (hex) of every file below ``path`` by relative name; of a file itself, under the name ``.``."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): digest(file) for file in files}


def digest_of(value: Any) -> str:
    """sha256 (hex) of a value of plain types, by its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def require_disk(folder: Path, needed: int, what: str, hint: str) -> None:
    """Refuse when ``needed`` bytes do not fit on the disk of ``folder`` (which need not exist yet).

    Raises:
        ResourceError: naming the folder, what is needed, what there is, and ``hint``.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    logger.info("disk for %s: %s, %s free at %s", what, readable(needed), readable(free), place)
    if needed > free:
        raise ResourceError(
            f"not enough disk for {what}: {readable(needed)} are needed, {readable(free)} are free at {place}",
            hint=f"free some space, or {hint}",
        )


def readable(size: float) -> str:
    """1536 -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
