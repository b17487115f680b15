"""Reading single ``s3://`` objects, with the endpoint and credentials of the usual AWS variables."""

from __future__ import annotations

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
)

from whence.errors import DataError

SCHEME = "s3://"
# An endpoint that does not answer is to be told in seconds, not after botocore's five tries of a minute each.
_NETWORK = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the secret of AWS_ACCESS_KEY_ID",
    "InvalidAccessKeyId": "the access key is unknown; check AWS_ACCESS_KEY_ID",
    "AccessDenied": "access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights of this key",
}


def download(address: str, target: Path, setting: str) -> None:
    """Copy the object at ``address`` to the file ``target``.

    Raises:
        DataError: no bucket, object, credentials or endpoint; the message names ``setting`` and ``address``.
    """
    bucket, key = _parts(address)
    with _named(address, setting) as client:
        try:
            client.download_file(bucket, key, str(target))
        except ClientError:
            # It asked with HEAD, whose refusals carry a number and no reason; ask again for the first byte.
            client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            raise


def list_objects(address: str, setting: str) -> list[str]:
    """Addresses of the objects directly in the folder ``address``, sorted.

    Raises:
        DataError: as for :func:`download`.
    """
    bucket, prefix = _parts(address.rstrip("/") + "/")
    with _named(address, setting) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        return sorted(f"{SCHEME}{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", []))


def _parts(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    return bucket, key


@contextmanager
def _named(address: str, setting: str) -> Iterator[Any]:
    """A client whose errors become DataErrors with address, reason and way out."""
    try:
        # A session of its own: the default one keeps the credentials of its first use.
        yield boto3.Session().client("s3", config=_NETWORK)
    except (BotoCoreError, Boto3Error, ClientError) as error:
        raise DataError(f"{setting}: cannot read {address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return f"{_REASONS[code]} ({code})" if code in _REASONS else str(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, HTTPClientError | ConnectionError):
        return f"{error}; check AWS_ENDPOINT_URL and the network"
    return str(error)
