"""What cannot be stored is refused before the network is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from whence.errors import StorageError
from whence.storage import upload_folder


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
