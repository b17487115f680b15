"""Finished parts of long work on disk: each is whole and proven, or it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from whence.errors import FactorError
from whence.files import replacing
from whence.models.language import tensors_digest

KEY, DIGEST = "whence.key", "whence.sha256"


class Parts:
    """Parts of one piece of work in one folder, each a safetensors file that carries its key and checksum."""

    def __init__(self, folder: Path, key: str, sources: Sequence[Path] = ()) -> None:
        """Use ``folder`` for work whose result is decided by ``key``; parts of other work there do not count.

        Args:
            sources: folders of the same work done elsewhere, whose parts are read where they are.
        """
        self.folder, self.key, self.sources = folder, key, sources
        self._proven: dict[str, Path] = {}

    def has(self, name: str) -> bool:
        """Whether the part is there, belongs to this work and is undamaged; it is read in full the first time."""
        if name not in self._proven:
            paths = (_file(folder, name) for folder in (self.folder, *self.sources))
            proven = next((path for path in paths if self._proves(path)), None)
            if proven is None:
                return False
            self._proven[name] = proven
        return True

    def put(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a part under a temporary name, then give it its own: a crash leaves no half of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        path = _file(self.folder, name)
        with replacing(path) as temporary:
            save_file(whole, temporary, metadata={KEY: self.key, DIGEST: tensors_digest(sorted(whole.items()))})
        self._proven[name] = path

    def tensor(self, name: str, key: str) -> torch.Tensor:
        """One tensor of a part.

        Raises:
            FactorError: the part is not there, damaged, or of other work.
        """
        with safe_open(self._proven_file(name), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
            return tensor

    def _proven_file(self, name: str) -> Path:
        if not self.has(name):
            places = ", ".join(map(str, (self.folder, *self.sources)))
            raise FactorError(
                f"the part {name} is missing, damaged or made of other inputs or settings (looked in {places})",
                hint="run the task that makes it again",
            )
        return self._proven[name]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """All tensors of a part; errors are those of :meth:`tensor`."""
        with safe_open(self._proven_file(name), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def drop(self, name: str) -> None:
        """Remove a part from this work's own folder; those of ``sources`` are not its to remove."""
        _file(self.folder, name).unlink(missing_ok=True)
        self._proven.pop(name, None)

    def clear(self) -> None:
        """Remove the folder with all parts, also those of other work."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._proven.clear()

    def _proves(self, path: Path) -> bool:
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                if notes.get(KEY) != self.key:
                    return False
                digest = tensors_digest((key, file.get_tensor(key)) for key in sorted(file.keys()))
        except (OSError, SafetensorError):
            return False
        return notes.get(DIGEST) == digest


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
