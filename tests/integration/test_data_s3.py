"""Data and prompts are read from a real S3 server, and its refusals are told in words."""

import gzip
import json
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import Bucket
from swift import Swift

from whence.config import Config
from whence.data.prompts import load_prompts
from whence.data.sources import RawRows, read_rows
from whence.errors import DataError

ROWS = [{"text": f"text {number}", "label": "F"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def read(make_config: Callable[..., Config]) -> Callable[..., RawRows]:
    def read(*addresses: str) -> RawRows:
        files = {"dataset.name": None, "dataset.train_files": addresses, "dataset.eval_files": addresses}
        return read_rows(make_config(files).dataset, "train", seed=0)

    return read


def test_every_kind_of_object_gives_its_rows(bucket: Bucket, read: Callable[..., RawRows]) -> None:
    contents = {
        "a.jsonl": LINES,
        "b.jsonl.gz": gzip.compress(LINES),
        "c.csv": pd.DataFrame(ROWS).to_csv(index=False).encode(),
        "d.parquet": pd.DataFrame(ROWS).to_parquet(),
        "with space & ünicode.jsonl": LINES,
    }
    for key, content in contents.items():
        rows = read(bucket.put(f"data/{key}", content))
        assert list(rows.frame["input"]) == [row["text"] for row in ROWS], key
        assert rows.frame["source_id"][0].startswith(f"{key}:"), key


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder_is_its_data_objects_in_order(bucket: Bucket, read: Callable[..., RawRows], ending: str) -> None:
    for key in ("data/b.jsonl", "data/a.jsonl", "data/notes.txt", "data/deeper/c.jsonl", "database/d.jsonl"):
        bucket.put(key, LINES)
    frame = read(f"s3://{bucket.name}/data{ending}").frame
    assert [source.partition(":")[0] for source in frame["source_id"]] == ["a.jsonl"] * 3 + ["b.jsonl"] * 3


def test_a_file_large_enough_for_several_transfers_at_once_arrives_whole(
    bucket: Bucket, read: Callable[..., RawRows]
) -> None:
    rows = [{"text": f"{number} " + "word " * 2000, "label": "F"} for number in range(2000)]
    address = bucket.put("large.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert list(read(address).frame["input"]) == [row["text"] for row in rows]


def test_prompts_are_read_from_a_bucket(bucket: Bucket, make_config: Callable[..., Config]) -> None:
    address = bucket.put("prompts.json", b'["Who built it?"]')
    assert load_prompts(make_config({"prompts": {"path": address}}))[0].prompt == "Who built it?"


def refusal(read: Callable[..., RawRows], address: str) -> str:
    with pytest.raises(DataError) as caught:
        read(address)
    message = str(caught.value)
    assert message.startswith(f"dataset.train_files: cannot read {address}: ")
    return message


@pytest.mark.parametrize("key", ["data.jsonl", "folder/"])
def test_a_wrong_secret_is_refused_and_not_repeated(
    bucket: Bucket, read: Callable[..., RawRows], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    bucket.put("data.jsonl", LINES)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    message = refusal(read, f"s3://{bucket.name}/{key}")
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert "SignatureDoesNotMatch" in message
    assert "not-the-secret" not in message


def test_an_unknown_access_key_is_refused(
    bucket: Bucket, read: Callable[..., RawRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:nobody")
    assert "AWS_ACCESS_KEY_ID" in refusal(read, bucket.put("data.jsonl", LINES))


@pytest.mark.parametrize("key", ["data.jsonl", "folder"])
def test_a_missing_bucket_is_named(aws: Swift, read: Callable[..., RawRows], key: str) -> None:
    assert "no such bucket" in refusal(read, f"s3://nobody-made-this/{key}")


def test_a_missing_object_is_named(bucket: Bucket, read: Callable[..., RawRows]) -> None:
    assert "no such object" in refusal(read, f"s3://{bucket.name}/missing.jsonl")


def test_a_folder_without_data_is_refused(bucket: Bucket, read: Callable[..., RawRows]) -> None:
    bucket.put("data/notes.txt", b"nothing")
    with pytest.raises(DataError, match=rf"s3://{bucket.name}/data/ has no \.csv"):
        read(f"s3://{bucket.name}/data/")


def test_missing_credentials_are_said_to_be_missing(
    bucket: Bucket, read: Callable[..., RawRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal(read, f"s3://{bucket.name}/data.jsonl")


def test_a_server_that_is_down_is_told_with_its_address(
    aws: Swift, read: Callable[..., RawRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    message = refusal(read, "s3://bucket/data.jsonl")
    assert "http://127.0.0.1:1" in message
    assert "AWS_ENDPOINT_URL" in message


def test_damaged_data_is_named_by_its_address_and_line(bucket: Bucket, read: Callable[..., RawRows]) -> None:
    address = bucket.put("data.jsonl", LINES + b'{"text": ')
    with pytest.raises(DataError, match=rf"{address}, line 4: not valid JSON"):
        read(address)
