"""S3-compatible storage: addresses, the one client, and its refusals in words.

Everything that reads or writes ``s3://`` goes through here, configured as the AWS tools are: ``AWS_ENDPOINT_URL``,
``AWS_REGION`` (or ``AWS_DEFAULT_REGION``), ``AWS_CA_BUNDLE``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_PROFILE``, ``~/.aws/config`` and so on. At an endpoint of one's own the bucket is put into the path, unless the
configuration says ``s3 = addressing_style = virtual``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from whence.config import S3_SCHEME
from whence.errors import DataError, StorageError, WhenceError

CONNECTIONS = 10  # requests at once
# An endpoint that does not answer is to be told in seconds, not after botocore's five tries of a minute each.
# Checksums in trailers only where S3 asks for them: many compatible servers refuse them.
_NETWORK = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=CONNECTIONS,
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the secret of AWS_ACCESS_KEY_ID; check both",
    "InvalidAccessKeyId": "the access key is unknown; check AWS_ACCESS_KEY_ID",
    "AccessDenied": "access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights of this key",
}


def split(address: str) -> tuple[str, str]:
    """Bucket and key of an address."""
    bucket, _, key = address.removeprefix(S3_SCHEME).partition("/")
    return bucket, key


def make_client() -> Any:
    """A new client, with what the environment says now.

    Raises:
        StorageError: the endpoint is no address.
    """
    # A session of its own: the default one keeps the credentials of its first use. It does not know AWS_REGION, which
    # every other AWS tool reads.
    session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
    try:
        return session.client("s3", config=_NETWORK)
    except ValueError as error:  # boto3's own for an address that is none
        given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        raise StorageError(
            f"AWS_ENDPOINT_URL: {given or error} is no address", hint="write it with http:// or https:// before it"
        ) from error


@contextmanager
def explained(what: str, kind: type[WhenceError]) -> Iterator[None]:
    """Turn S3's errors into ``kind``: what could not be done, the reason and the way out."""
    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError) as error:
        raise kind(f"{what}: {_reason(error)}") from error


def download(address: str, target: Path, setting: str, kind: type[WhenceError] = DataError) -> None:
    """Copy the object at ``address`` to the file ``target``.

    Raises:
        WhenceError: of ``kind``: no bucket, object, credentials or endpoint; the message names ``setting`` and
            ``address``.
    """
    bucket, key = split(address)
    with explained(f"{setting}: cannot read {address}", kind):
        client = make_client()
        try:
            client.download_file(bucket, key, str(target))
        except ClientError:
            # It asked with HEAD, whose refusals carry a number and no reason; ask again for the first byte.
            client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            raise


def read_text(address: str, setting: str, kind: type[WhenceError]) -> str:
    """The UTF-8 text of a small object.

    Raises:
        WhenceError: as for :func:`download`, or it is not UTF-8.
    """
    bucket, key = split(address)
    with explained(f"{setting}: cannot read {address}", kind):
        content: bytes = make_client().get_object(Bucket=bucket, Key=key)["Body"].read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{setting}: {address} is not UTF-8 ({error.reason} at byte {error.start})") from error


def list_objects(address: str, setting: str) -> list[str]:
    """Addresses of the objects directly in the folder ``address``, sorted.

    Raises:
        DataError: as for :func:`download`.
    """
    bucket, prefix = split(address.rstrip("/") + "/")
    with explained(f"{setting}: cannot read {address}", DataError):
        pages = make_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        return sorted(f"{S3_SCHEME}{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", []))


def require(address: str, setting: str) -> None:
    """Check that the object or folder at ``address`` is there and may be listed.

    Raises:
        DataError: as for :func:`download`, or there is nothing.
    """
    bucket, key = split(address)
    with explained(f"{setting}: cannot read {address}", DataError):
        if not make_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount"):
            raise DataError(f"{setting}: there is nothing at {address}", hint="correct the address")


def _reason(error: Exception) -> str:
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return f"{_REASONS[code]} ({code})" if code in _REASONS else str(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, SSLError):
        return f"{error}; set AWS_CA_BUNDLE to the certificate of the authority that signed the server's"
    if isinstance(error, HTTPClientError | ConnectionError):
        return f"{error}; check AWS_ENDPOINT_URL and the network"
    return str(error)
