"""Folders to S3-compatible storage: their files by boto3's transfer manager, then the manifest with their checksums."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, ConnectionError, HTTPClientError
from rich.filesize import decimal
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from whence import s3
from whence.config import S3_SCHEME, is_address
from whence.errors import StorageError
from whence.files import digest
from whence.progress import progress

MANIFEST = "manifest.json"
CHECKSUM = "sha256"  # the metadata of an object by which a later upload knows its content
ATTEMPTS = 12  # with growing pauses of up to 20 seconds: two and a half minutes of outage
PART_SIZE = 16 * 2**20
TRANSFER = TransferConfig(
    multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, max_request_concurrency=s3.CONNECTIONS
)


@dataclass(frozen=True)
class Uploaded:
    """All files and bytes of a folder, those that this upload sent (the rest was there already), and its seconds."""

    files: int
    bytes: int
    sent_files: int
    sent_bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = decimal(round(self.sent_bytes / max(self.seconds, 1e-9)))
        skipped = self.files - self.sent_files
        rest = f"; {skipped} more were there already" if skipped else ""
        return f"{self.sent_files} files, {decimal(self.sent_bytes)} in {self.seconds:.1f} s ({rate}/s){rest}"


def upload_folder(folder: str | Path, address: str) -> Uploaded:
    """Store every file below ``folder`` under ``address``, and last the manifest with their sizes and SHA-256.

    Called again after a crash it skips the files that are there with the same checksum, and so it goes on by itself
    after an outage. Parts that a killed upload left stay in the bucket until its lifecycle rule for incomplete
    multipart uploads removes them. Other objects under ``address`` are left alone; those the manifest does not name are
    not part of the folder. Links to folders are not followed, empty folders are not kept.

    Args:
        folder: must not change meanwhile.
        address: ``s3://bucket/prefix``.

    Raises:
        StorageError: the folder cannot be read or changes, or the bucket cannot be reached or written.
    """
    began, folder = time.monotonic(), Path(folder)
    bucket, prefix = _split_folder(address)
    files = _files_of(folder)
    with (
        s3.explained(f"cannot upload {folder} to {address}", StorageError),
        progress(desc="upload", unit="B", unit_scale=True) as bar,
    ):
        upload = _Upload(folder, files, s3.make_client(), bucket, prefix, bar)
        upload.stored_sizes()  # a wrong address fails here, before anything is repeated
        repeated = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(max=20),
            reraise=True,
        )
        repeated(upload.send)
    sent = {name: files[name] for name in upload.sent}
    return Uploaded(len(files), _size_of(files), len(sent), _size_of(sent), time.monotonic() - began)


def download_folder(address: str, folder: str | Path) -> None:
    """Fetch what :func:`upload_folder` stored under ``address``, and check it against the manifest.

    Raises:
        StorageError: there is no manifest, an object is missing or damaged, or the bucket cannot be reached.
    """
    manifest = json.loads(s3.read_text(f"{address.rstrip('/')}/{MANIFEST}", "manifest", StorageError))
    for name, entry in manifest["files"].items():
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        s3.download(f"{address.rstrip('/')}/{name}", file, name, StorageError)
        if digest(file) != entry[CHECKSUM]:
            raise StorageError(f"{address}/{name} is not what was stored there", hint="run the stage again")


def check_writable(address: str) -> None:
    """Find out in seconds whether the bucket can be written, and leave nothing there.

    Raises:
        StorageError: no such bucket, wrong credentials, no right to write, or no server.
    """
    bucket, prefix = _split_folder(address)
    with s3.explained(f"cannot write to {address}", StorageError):
        client = s3.make_client()
        target = {"Bucket": bucket, "Key": f"{prefix}{MANIFEST}"}
        upload = client.create_multipart_upload(**target)
        client.abort_multipart_upload(**target, UploadId=upload["UploadId"])


@dataclass
class _Upload:
    folder: Path
    files: dict[str, os.stat_result]
    client: Any
    bucket: str
    prefix: str
    bar: Any
    sent: set[str] = field(default_factory=set)
    _digests: dict[str, str] = field(default_factory=dict)

    def send(self) -> None:
        """Send the files that are not stored, then the manifest. May be repeated."""
        self.bar.reset(total=_size_of(self.files))
        stored, transfers = self.stored_sizes(), {}
        with TransferManager(self.client, TRANSFER) as manager:
            for name in self.files:
                if not self._is_stored(name, stored):
                    self._withdraw_manifest(stored)
                    transfers[name] = self._start(manager, name)
            for name, transfer in transfers.items():
                self._finish(transfer, name)
        for name in self.files:
            self._require_unchanged(name)
        entries = {name: {"size": state.st_size, "sha256": self._digest(name)} for name, state in self.files.items()}
        body = json.dumps({"version": 1, "files": entries}, indent=1).encode()
        self.client.put_object(**self._object(MANIFEST), Body=body, ContentType="application/json")

    def stored_sizes(self) -> dict[str, int]:
        """Bytes of every object below the address, by its name there."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {
            item["Key"].removeprefix(self.prefix): item["Size"] for page in pages for item in page.get("Contents", [])
        }

    def _is_stored(self, name: str, stored: dict[str, int]) -> bool:
        size = self.files[name].st_size
        if stored.get(name) != size:
            return False
        metadata: dict[str, str] = self.client.head_object(**self._object(name))["Metadata"]
        if metadata.get(CHECKSUM) != self._digest(name):
            return False
        self.bar.total -= size  # the rate is that of the network
        return True

    def _withdraw_manifest(self, stored: dict[str, int]) -> None:
        """Before the first change: a manifest must never be beside files that it does not describe."""
        if stored.pop(MANIFEST, None) is not None:
            self.client.delete_object(**self._object(MANIFEST))

    def _start(self, manager: TransferManager, name: str) -> Any:
        self.sent.add(name)
        metadata = {"Metadata": {CHECKSUM: self._digest(name)}}
        path, target = self.folder / name, self._object(name)
        return manager.upload(str(path), target["Bucket"], target["Key"], metadata, [_Subscriber(self.bar)])

    def _finish(self, transfer: Any, name: str) -> None:
        path = self.folder / name
        with s3.explained(f"cannot upload {path} to {S3_SCHEME}{self.bucket}/{self.prefix}{name}", StorageError):
            try:
                transfer.result()
            except OSError as error:
                raise _unreadable(error, path) from error

    def _require_unchanged(self, name: str) -> None:
        before, after = self.files[name], (self.folder / name).stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StorageError(
                f"{self.folder / name} changed while it was uploaded", hint="upload the folder when nobody writes to it"
            )

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            try:
                self._digests[name] = digest(self.folder / name)
            except OSError as error:
                raise _unreadable(error, self.folder / name) from error
        return self._digests[name]

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}{name}"}


def _is_transient(error: BaseException) -> bool:
    """Whether a failure passes by itself: the server is away or busy."""
    error = error.__cause__ or error
    if isinstance(error, ClientError):
        status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    return isinstance(error, HTTPClientError | ConnectionError)


def _size_of(files: dict[str, os.stat_result]) -> int:
    return sum(state.st_size for state in files.values())


class _Subscriber(BaseSubscriber):
    """What the transfer manager tells of its progress, from several threads."""

    _lock = threading.Lock()

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        with self._lock:
            self._bar.update(bytes_transferred)  # negative when a request is repeated


def _split_folder(address: str) -> tuple[str, str]:
    """Bucket, and prefix with its slash (a whole bucket: none)."""
    bucket, key = s3.split(address)
    if not is_address(address) or not bucket:
        raise StorageError(f"{address!r} is not the address of a folder", hint="use s3://bucket/prefix")
    prefix = key.rstrip("/")
    return bucket, f"{prefix}/" if prefix else ""


def _files_of(folder: Path) -> dict[str, os.stat_result]:
    """The state of every file by its path in ``folder``."""
    if not folder.is_dir():
        raise StorageError(f"cannot upload {folder}: there is no such folder")

    def refuse(error: OSError) -> None:
        raise _unreadable(error, Path(error.filename)) from error

    files = {}
    for parent, _, names in os.walk(folder, onerror=refuse):
        for path in (Path(parent) / name for name in sorted(names)):
            if not path.is_file():
                raise StorageError(f"cannot upload {path}: it is neither a file nor a link to one", hint="remove it")
            files[path.relative_to(folder).as_posix()] = path.stat()
    if MANIFEST in files:
        raise StorageError(
            f"cannot upload {folder / MANIFEST}: storage keeps its own file of this name", hint="rename it"
        )
    return dict(sorted(files.items()))


def _unreadable(error: OSError, path: Path) -> StorageError:
    return StorageError(f"cannot read {path}: {error.strerror}")
