"""``manifest.json``: the names, sizes and checksums of a folder's files. It is written last, so it says "complete"."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator

from whence.errors import StorageError

MANIFEST = "manifest.json"


class Entry(BaseModel):
    """One file: its length in bytes and its SHA-256 in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The files of a folder by their path in it, with forward slashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    files: dict[str, Entry]

    @field_validator("files")
    @classmethod
    def _stay_in_the_folder(cls, files: dict[str, Entry]) -> dict[str, Entry]:
        """What lies in a bucket was written by whoever may write there: no name may lead out of the folder."""
        for name in files:
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name:
                raise ValueError(f"{name!r} is not the path of a file in a folder")
        return files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    @classmethod
    def parse(cls, content: bytes, address: str) -> Manifest:
        """Read the manifest stored at ``address``.

        Raises:
            StorageError: it is damaged, of a later version, or names files outside the folder.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise StorageError(
                f"{address} is damaged or of another version ({place}: {problem['msg']}); upload the folder again"
            ) from error


def sha256_of(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
