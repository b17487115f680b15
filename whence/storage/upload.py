"""A folder to storage: finished files and parts of an earlier try are not sent again, the manifest is written last."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from s3transfer.utils import ReadFileChunk

from whence import s3
from whence.config import S3_SCHEME
from whence.errors import StorageError
from whence.storage.manifest import MANIFEST, Entry, Manifest, sha256_of
from whence.storage.transfer import PART, Transferred, Transfers, parts_of, split_folder

CHECKSUM = "sha256"  # the objects' own record, by which an earlier try's are known again


def upload_folder(folder: str | Path, address: str) -> Transferred:
    """Store every file below ``folder`` under ``address``, and then the manifest that makes it a folder.

    Called again after a crash or an outage it goes on: files that are there with the same checksum, and parts of a
    large file that have arrived, are not sent again. Parts of uploads that nobody goes on with stay in the bucket until
    its lifecycle rule for incomplete multipart uploads removes them. Other objects under ``address`` are left alone;
    those the manifest does not name are not part of the folder. Links to folders are not followed, empty folders are
    not kept.

    Args:
        folder: what is uploaded; it must not change meanwhile.
        address: ``s3://bucket/prefix``.

    Raises:
        StorageError: the folder cannot be read or changes, or the bucket cannot be reached or written.
    """
    bucket, prefix = split_folder(address)
    folder = Path(folder)
    files = _files_of(folder)
    with s3.explained(f"cannot upload {folder} to {address}", StorageError), Transfers("upload") as transfers:
        client = s3.make_client()
        upload = _Upload(client, transfers, folder, bucket, prefix)
        upload.look()
        transfers.expect(sum(files.values()))
        transfers.each(upload.file, files)
        manifest = upload.finish()
        return transfers.sum(len(manifest.files), manifest.size)


def check_writable(address: str) -> None:
    """Find out in seconds whether the bucket can be written, and leave nothing there.

    Raises:
        StorageError: no such bucket, wrong credentials, no right to write, or no server.
    """
    bucket, prefix = split_folder(address)
    with s3.explained(f"cannot write to {address}", StorageError):
        client = s3.make_client()
        key = f"{prefix}{MANIFEST}"
        begun = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=begun["UploadId"])


class _Upload:
    def __init__(self, client: Any, transfers: Transfers, folder: Path, bucket: str, prefix: str) -> None:
        self._client, self._transfers, self._folder = client, transfers, folder
        self._bucket, self._prefix = bucket, prefix
        self._there: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def look(self) -> None:
        """Find what is there; the first contact, so it is not repeated for minutes when the address is wrong."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        self._there = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def file(self, name: str) -> None:
        """Send one file if it is not there yet, and note it for the manifest."""
        path, key = self._folder / name, f"{self._prefix}{name}"
        with s3.explained(f"cannot upload {path} to {S3_SCHEME}{self._bucket}/{key}", StorageError):
            try:
                before = os.stat(path)
                entry = Entry(size=before.st_size, sha256=sha256_of(path))
                if self._there.get(key) == entry.size and self._checksum(key) == entry.sha256:
                    self._transfers.found(entry.size)
                else:
                    self._withdraw_manifest()
                    self._send(path, key, entry)
                    self._transfers.moved(0, files=1)
                after = os.stat(path)
            except OSError as error:
                raise StorageError(f"cannot read {path}: {error.strerror}") from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StorageError(f"{path} changed while it was uploaded; upload the folder when nobody writes to it")
        self._entries[name] = entry

    def finish(self) -> Manifest:
        manifest = Manifest(files=dict(sorted(self._entries.items())))
        body = manifest.model_dump_json(indent=1).encode()
        self._ask("put_object", f"{self._prefix}{MANIFEST}", Body=body, ContentType="application/json")
        return manifest

    def _withdraw_manifest(self) -> None:
        """Before the first change: a manifest must never stand beside files that it does not describe."""
        with self._lock:
            if self._there.pop(f"{self._prefix}{MANIFEST}", None) is not None:
                self._ask("delete_object", f"{self._prefix}{MANIFEST}")

    def _send(self, path: Path, key: str, entry: Entry) -> None:
        if entry.size <= PART:
            self._transfers.ask(self._put, path, key, entry)
            return
        upload_id, etags = self._unfinished(path, key, entry)
        resumed = upload_id is not None
        if upload_id is None:
            upload_id = self._ask("create_multipart_upload", key, Metadata={CHECKSUM: entry.sha256})["UploadId"]
        self._send_parts(path, key, entry, upload_id, etags)
        if resumed and self._checksum(key) != entry.sha256:
            # All parts were this file's, but the try that began them was of another state of it.
            self._transfers.found(-entry.size)
            upload_id = self._ask("create_multipart_upload", key, Metadata={CHECKSUM: entry.sha256})["UploadId"]
            self._send_parts(path, key, entry, upload_id, {})

    def _put(self, path: Path, key: str, entry: Entry) -> None:
        with open(path, "rb") as body:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=body, Metadata={CHECKSUM: entry.sha256})
        self._transfers.moved(entry.size)

    def _unfinished(self, path: Path, key: str, entry: Entry) -> tuple[str | None, dict[int, str]]:
        """An upload of this very content that an earlier try began, and the ETags of the parts that arrived."""
        begun = [item for item in self._pages("list_multipart_uploads", "Uploads", Prefix=key) if item["Key"] == key]
        for item in sorted(begun, key=lambda one: str(one["Initiated"]), reverse=True):
            parts = self._pages("list_parts", "Parts", Key=key, UploadId=item["UploadId"])
            etags = {part["PartNumber"]: part["ETag"] for part in parts}
            ranges = parts_of(entry.size)
            if etags and all(number in ranges and _md5(path, *ranges[number]) in etags[number] for number in etags):
                self._transfers.found(sum(ranges[number][1] for number in etags))
                return item["UploadId"], etags
        return None, {}

    def _send_parts(self, path: Path, key: str, entry: Entry, upload_id: str, etags: dict[int, str]) -> None:
        sent: dict[int, Future[str]] = {
            number: self._transfers.request(self._part, path, key, upload_id, number, start, length)
            for number, (start, length) in parts_of(entry.size).items()
            if number not in etags
        }
        all_etags = etags | {number: answer.result() for number, answer in sent.items()}
        parts = [{"PartNumber": number, "ETag": all_etags[number]} for number in sorted(all_etags)]
        try:
            self._ask("complete_multipart_upload", key, UploadId=upload_id, MultipartUpload={"Parts": parts})
        except ClientError as error:
            # Done before, where only the answer got lost.
            if error.response["Error"]["Code"] != "NoSuchUpload" or self._checksum(key) != entry.sha256:
                raise

    def _part(self, path: Path, key: str, upload_id: str, number: int, start: int, length: int) -> str:
        with ReadFileChunk.from_filename(str(path), start, length) as body:
            answer = self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body
            )
        self._transfers.moved(length)
        etag: str = answer["ETag"]
        return etag

    def _checksum(self, key: str) -> str | None:
        """The checksum an object was stored with; None when it has none or is not there."""
        try:
            return self._ask("head_object", key)["Metadata"].get(CHECKSUM)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def _ask(self, operation: str, key: str, **arguments: Any) -> Any:
        return self._transfers.ask(getattr(self._client, operation), Bucket=self._bucket, Key=key, **arguments)

    def _pages(self, operation: str, field: str, **arguments: Any) -> list[Any]:
        pages = self._client.get_paginator(operation).paginate(Bucket=self._bucket, **arguments)
        return self._transfers.ask(lambda: [item for page in pages for item in page.get(field, [])])


def _files_of(folder: Path) -> dict[str, int]:
    """Size of every file by its path in ``folder``."""
    if not folder.is_dir():
        raise StorageError(f"cannot upload {folder}: there is no such folder")
    files = {}
    for place, _, names in os.walk(folder, onerror=_unreadable):
        for path in (Path(place) / name for name in sorted(names)):
            if not path.is_file():
                raise StorageError(f"cannot upload {path}: it is neither a file nor a link to one; remove it")
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    if MANIFEST in files:
        raise StorageError(f"cannot upload {folder / MANIFEST}: storage keeps its own file of this name; rename it")
    return files


def _unreadable(error: OSError) -> None:
    raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error


def _md5(path: Path, start: int, length: int) -> str:
    """S3's ETag of a part; where a server has other ETags, parts are not recognised and sent again."""
    digest = hashlib.md5(usedforsecurity=False)
    with ReadFileChunk.from_filename(str(path), start, length) as chunk:
        while block := chunk.read(2**20):
            digest.update(block)
    return digest.hexdigest()
