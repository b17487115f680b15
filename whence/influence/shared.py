"""Modules that see the same input, as the gate and the other half of a gated MLP, or queries, keys and values.

They have one covariance of activations, so one eigendecomposition and one rotation. Which do is seen in a forward pass,
by the very tensor that they are handed, and held to in every pass that sums covariances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from whence.errors import FactorError

if TYPE_CHECKING:
    from whence.influence.linear import FastLinear

Make = Callable[[torch.Tensor], torch.Tensor]


def place_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """What tensors have in common that are one piece of memory, until it is changed or all of them are gone."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


class SharedInput:
    """What is made once of an input for all ``members`` that see it, while a batch goes through them."""

    def __init__(self, members: int) -> None:
        self.members = members
        self._met: list[tuple[tuple[object, ...], torch.Tensor]] = []
        self.clear()

    def clear(self) -> None:
        """Let go of a batch."""
        self._done = 0
        self._source: tuple[tuple[object, ...], torch.Tensor] | None = None
        self._values: torch.Tensor | None = None
        self._right: torch.Tensor | None = None
        self._rotated: torch.Tensor | None = None

    def meet(self, module: str, inputs: torch.Tensor) -> None:
        """A member is handed its input in a forward pass.

        Raises:
            FactorError: it is not that of the others.
        """
        if self._met and self._met[0][0] != place_of(inputs):
            raise FactorError(
                f"module {module} sees another input than modules that it shared one with in a trial",
                hint="leave it out of factors.modules",
            )
        self._met.append((place_of(inputs), inputs))
        if len(self._met) == self.members:
            self._met.clear()

    def prepared(self, source: torch.Tensor, make: Make) -> torch.Tensor:
        """What ``make`` makes of the input, or of a piece of it."""
        place = place_of(source)
        if self._values is None or self._source is None or self._source[0] != place:
            self.clear()
            self._source, self._values = (place, source), make(source)
        return self._values

    def rotated(self, values: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """``values @ right``, known already where both are what another member had."""
        if values is not self._values:
            return values @ right
        if self._rotated is None or right is not self._right:
            self._right, self._rotated = right, values @ right
        return self._rotated

    def done(self) -> None:
        """A member needs nothing more of this batch."""
        self._done += 1
        if self._done >= self.members:
            self.clear()


def share_inputs(modules: Iterable[FastLinear], sharing: Mapping[str, str]) -> None:
    """Have these modules of a pass share inputs; of each input one module sums the covariance.

    Args:
        sharing: to a module the first one that sees the same input, where that is another one.
    """
    groups: dict[str, list[FastLinear]] = defaultdict(list)
    for module in modules:
        module.input_of = sharing.get(module.name, module.name)
        groups[module.input_of].append(module)
    for members in groups.values():
        shared = SharedInput(len(members)) if len(members) > 1 else None
        owner = next((module for module in members if module.name == module.input_of), members[0])
        for module in members:
            module.shared, module.sums_inputs = shared, module is owner
