"""Sketches of whitened gradients: few numbers for each example whose products are those of the gradients, on average.

A count sketch ``c = R u`` (Charikar, Chen & Farach-Colton, 2002; for inner products Pham & Pagh, 2013) adds every
coordinate of ``u``, with a random sign, to one of ``k`` places, so that ``<R u, R v>`` has the mean ``<u, v>`` and a
standard deviation of at most ``sqrt(2 / k) |u| |v|``, however long ``u`` is. Modules share the ``k`` places: the sketch
of an example is the sum over them.

What is kept of a sketch is a bit (or a few) for each of its numbers, as in RaBitQ (Gao & Long, 2024, arXiv:2405.12497).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from whence.config import Config
from whence.influence.index import searchable


@dataclass(frozen=True)
class Sketch:
    """The random choices of a sketch, the same wherever they are made again.

    Attributes:
        dimensions: numbers of a sketch, ``k``.
        bits: kept of each.
        seed: of the choices.
    """

    dimensions: int
    bits: int
    seed: int

    @classmethod
    def of(cls, config: Config) -> Sketch:
        """By the settings ``index`` and the seed."""
        return cls(config.index.dimensions, config.index.bits, config.general.seed)

    def signs(self, module: str, shape: tuple[int, int]) -> torch.Tensor:
        """The random signs of a module's coordinates, of the ``shape`` of its gradients, fp32."""
        bits = self._random(module, 0).integers(0, 2, shape, dtype=np.int8)
        return torch.from_numpy(bits).float().mul_(2).sub_(1)

    def add(self, sketches: torch.Tensor, signed: torch.Tensor, module: str) -> None:
        """Add a module's gradients ``[examples, coordinates]``, with their signs, to ``sketches`` ``[examples, k]``.

        A run of ``k`` coordinates goes to ``k`` different places, beginning at a random one: two coordinates of a run
        never meet, two of others meet by a chance of 1 / k.
        """
        size = self.dimensions
        runs = range(0, signed.shape[1], size)
        for start, place in zip(runs, self._random(module, 1).integers(0, size, len(runs)).tolist(), strict=True):
            run = signed[:, start : start + size]
            before, after = run[:, : size - place], run[:, size - place :]
            sketches[:, place : place + before.shape[1]] += before
            sketches[:, : after.shape[1]] += after

    @staticmethod
    def turned(sketches: torch.Tensor) -> torch.Tensor:
        """The same sketches after a rotation (Hartley's transform), which leaves no number much larger than others.

        A bit of each says most then. Their products stay as they are; that of a sketch with itself, too.
        """
        waves: torch.Tensor = torch.fft.fft(sketches, norm="ortho")
        return waves.real - waves.imag

    def encode(self, sketches: torch.Tensor) -> torch.Tensor:
        """The codes of ``sketches`` ``[examples, k]``, ``[examples, bytes]`` uint8."""
        return torch.from_numpy(searchable(self.dimensions, self.bits).sa_encode(sketches.numpy()))

    def _random(self, module: str, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, *module.encode()))
