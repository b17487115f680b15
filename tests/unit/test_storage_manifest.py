"""Part sizes keep to S3's limits, and a manifest is taken only when every word of it makes sense."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.errors import StorageError
from whence.storage import upload_folder
from whence.storage.manifest import Entry, Manifest, sha256_of
from whence.storage.transfer import LARGEST, part_size, parts_of

MIB = 2**20
GOOD = {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}


@given(st.integers(min_value=1, max_value=LARGEST))
def test_a_file_of_any_size_fits_into_the_parts_that_s3_takes(size: int) -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html: 10,000 parts of 5 MiB to 5 GiB."""
    step = part_size(size)
    assert 5 * MIB <= step <= 5 * 2**30
    assert -(-size // step) <= 10_000
    assert step == 16 * MIB or -(-size // (step - MIB)) > 10_000, "larger than it must be"


def test_five_terabytes_fit_and_more_is_refused() -> None:
    assert part_size(5 * 2**40) == 525 * MIB
    with pytest.raises(StorageError, match="5 TiB"):
        part_size(5 * 2**40 + 1)


@pytest.mark.parametrize("size", [0, 1, 16 * MIB, 16 * MIB + 1, 200_000 * MIB])
def test_parts_cover_the_file_without_gaps(size: int) -> None:
    end = 0
    for start, length in parts_of(size).values():
        assert start == end
        assert length > 0
        end += length
    assert end == size
    assert list(parts_of(size)) == list(range(1, len(parts_of(size)) + 1))


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = Manifest(files={"a/b ü.bin": Entry(**GOOD), "c": Entry(size=0, sha256="0" * 64)})
    assert Manifest.parse(manifest.model_dump_json(indent=1).encode(), "s3://b/manifest.json") == manifest
    assert manifest.size == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Invalid JSON"),
        (b'{"version": 1, "files": {"a": {"size"', "Invalid JSON"),
        (b"[]", "object"),
        ({"version": 2, "files": {}}, "version"),
        ({"version": 1}, "files"),
        ({"version": 1, "files": {"a": GOOD | {"size": -1}}}, "size"),
        ({"version": 1, "files": {"a": GOOD | {"sha256": "abc"}}}, "sha256"),
        ({"version": 1, "files": {"a": GOOD | {"mode": 7}}}, "mode"),
        *[
            ({"version": 1, "files": {name: GOOD}}, "not the path of a file")
            for name in ("../a", "/etc/a", "a/../../b", "", ".", "a//b", "./a", "a/", "a\0b")
        ],
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_with_its_place(content: object, words: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(StorageError, match=words) as caught:
        Manifest.parse(raw, "s3://b/x/manifest.json")
    assert str(caught.value).startswith("s3://b/x/manifest.json is damaged")


def test_checksums_are_those_of_the_published_standard(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected


def test_a_folder_that_cannot_be_stored_is_refused_before_the_network(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        upload_folder(tmp_path / "nowhere", "s3://bucket/x")
    for address in ("bucket/x", "s3://", "s3:///x"):
        with pytest.raises(StorageError, match="use s3://bucket/prefix"):
            upload_folder(tmp_path, address)
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(StorageError, match="broken: it is neither a file nor a link to one"):
        upload_folder(tmp_path, "s3://bucket/x")
    (tmp_path / "broken").unlink()
    (tmp_path / "manifest.json").touch()
    with pytest.raises(StorageError, match=r"manifest\.json: storage keeps its own"):
        upload_folder(tmp_path, "s3://bucket/x")
