"""Where ``whence run`` leaves its runs: a local folder, or an address in storage that every run is copied to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console
from rich.markup import escape

from whence.config import is_address
from whence.errors import StorageError, WhenceError

if TYPE_CHECKING:
    from whence.storage import Uploaded


@dataclass(frozen=True)
class ArtifactRoot:
    """The folder in which the stages work, and the address their run is copied to afterwards, if any."""

    folder: Path
    address: str | None

    LOCAL: ClassVar[str] = "whence-output"

    @classmethod
    def parse(cls, text: str) -> ArtifactRoot:
        """``text`` is a folder, or an address: then stages work in the default folder."""
        return cls(Path(cls.LOCAL), text.rstrip("/")) if is_address(text) else cls(Path(text), None)

    def check(self) -> None:
        """Find out whether the run can be stored, before hours of work.

        Raises:
            StorageError: the bucket cannot be reached or written.
        """
        if self.address is not None:
            from whence.storage import check_writable  # with boto3, which a run on this machine does not need

            check_writable(self.address)

    def keep(self, run: Path, console: Console) -> None:
        """Copy a finished run to the address and say where it is.

        Raises:
            StorageError: it cannot be stored; the message has the command that stores it later.
        """
        if self.address is None:
            return
        try:
            uploaded = self._upload(run)
        except WhenceError as error:
            raise StorageError(
                f"{error}\nThe run itself is finished and whole in {run}. Once that is repaired, store it with: "
                f'python -c "from whence.storage import upload_folder as u; u({str(run)!r}, {self._address_of(run)!r})"'
            ) from error
        console.print(f"Stored at {escape(self._address_of(run))}: {uploaded}", soft_wrap=True, highlight=False)

    def keep_failed(self, run: Path) -> str:
        """Copy what a failed run has left behind; returns a line for the end of its error message."""
        if self.address is None:
            return ""
        try:
            self._upload(run)
        except WhenceError as error:
            return f"\nWhat it left could not be stored: {error}"
        return f"\nWhat it left is stored at {self._address_of(run)}"

    def _address_of(self, run: Path) -> str:
        return f"{self.address}/{run.name}"

    def _upload(self, run: Path) -> Uploaded:
        from whence.storage import upload_folder

        return upload_folder(run, self._address_of(run))
