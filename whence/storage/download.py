"""A folder from storage: to temporary names, checked against the manifest, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from whence import s3
from whence.config import S3_SCHEME
from whence.errors import ResourceError, StorageError
from whence.storage.manifest import MANIFEST, Entry, Manifest, sha256_of
from whence.storage.transfer import Transferred, Transfers, parts_of, split_folder

BLOCK = 2**20  # bytes read at once


def download_folder(address: str, folder: str | Path) -> Transferred:
    """Fetch the folder that :func:`~whence.storage.upload_folder` stored at ``address``.

    A file gets its name when its SHA-256 is that of the manifest. Files that are there with the right checksum are not
    fetched again, so a second call goes on after a crash; other files in ``folder`` are left alone.

    Raises:
        StorageError: there is no complete folder, an object is missing or altered, or storage cannot be reached.
        ResourceError: the disk has too little room.
    """
    folder = Path(folder)
    bucket, prefix = split_folder(address)
    with s3.explained(f"cannot download {address}", StorageError), Transfers("download") as transfers:
        client = s3.make_client()
        manifest = _manifest(client, bucket, prefix)
        _check_room(folder, manifest)
        transfers.expect(manifest.size)
        download = _Download(client, transfers, folder, bucket, prefix, manifest)
        transfers.each(download.file, manifest.files)
        return transfers.sum(len(manifest.files), manifest.size)


class _Download:
    def __init__(
        self, client: Any, transfers: Transfers, folder: Path, bucket: str, prefix: str, manifest: Manifest
    ) -> None:
        self._client, self._transfers, self._folder = client, transfers, folder
        self._bucket, self._prefix, self._manifest = bucket, prefix, manifest

    def file(self, name: str) -> None:
        """Fetch one file unless it is there."""
        path, entry = self._folder / name, self._manifest.files[name]
        try:
            if path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256:
                self._transfers.found(entry.size)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.part")
            try:
                self._fetch(f"{self._prefix}{name}", temporary, entry)
                os.replace(temporary, path)  # not synced: after a crash the checksum is looked at again
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        self._transfers.moved(0, files=1)

    def _fetch(self, key: str, target: Path, entry: Entry) -> None:
        address = f"{S3_SCHEME}{self._bucket}/{key}"
        with open(target, "wb") as file, s3.explained(f"cannot download {address}", StorageError):
            file.truncate(entry.size)
            ranges = parts_of(entry.size).values()
            parts = [self._transfers.request(self._part, key, file.fileno(), *part, entry.size) for part in ranges]
            try:
                for part in parts:
                    part.result()
            except BaseException:
                for part in parts:  # none may write to the file's number when the file is closed
                    part.cancel()
                for part in parts:
                    if not part.cancelled():
                        part.exception()
                raise
        found = sha256_of(target)
        if found != entry.sha256:
            raise _altered(address, f"its SHA-256 is {found} and not {entry.sha256}")

    def _part(self, key: str, file: int, start: int, length: int, size: int) -> None:
        """Fetch one range and write it to its place."""
        wanted = f"bytes={start}-{start + length - 1}"
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=wanted)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("NoSuchKey", "InvalidRange"):
                raise
            raise _altered(f"{S3_SCHEME}{self._bucket}/{key}", "it is missing or shorter") from error
        found = int(answer["ContentRange"].rpartition("/")[2])
        if found != size:
            raise _altered(f"{S3_SCHEME}{self._bucket}/{key}", f"it has {found} bytes and not {size}")
        position = start
        for block in answer["Body"].iter_chunks(BLOCK):
            os.pwrite(file, block, position)
            position += len(block)
        self._transfers.moved(length)


def _manifest(client: Any, bucket: str, prefix: str) -> Manifest:
    address = f"{S3_SCHEME}{bucket}/{prefix}"
    try:
        content: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}{MANIFEST}")["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
        raise StorageError(
            f"cannot download {address}: it has no {MANIFEST}, so nothing was stored there, or the upload was cut off; "
            "check the address, or upload the folder again"
        ) from error
    return Manifest.parse(content, f"{address}{MANIFEST}")


def _check_room(folder: Path, manifest: Manifest) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
    if manifest.size > free:
        there = sum(path.stat().st_size for name in manifest.files if (path := folder / name).is_file())
        if manifest.size - there > free:
            raise ResourceError(
                f"{folder} needs {manifest.size - there:,} bytes, but its disk has {free:,} free; "
                "free some, or choose a folder on another disk"
            )


def _altered(address: str, how: str) -> StorageError:
    return StorageError(
        f"{address} is not what was uploaded: {how}; upload the folder again, or restore the object's earlier version"
    )
