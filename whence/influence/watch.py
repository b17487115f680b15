"""The watch over factors while they are summed: the first batch that spoils one is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from kronfluence.module import TrackedModule

from whence.errors import FactorError


def finite_check(modules: Iterable[TrackedModule], factors: Sequence[str]) -> Callable[[int, Sequence[int]], None]:
    """A check for :class:`whence.influence.loader.Loader` that the summed ``factors`` of all modules are finite.

    It costs one synchronisation with the device per batch. A sum of squares is not finite as soon as a term is not,
    and a covariance's entries are bounded by its diagonal, so the trace of one and the sum of the other tell it all.
    """
    watched = [(module, factor) for module in modules for factor in factors]

    def check(number: int, indices: Sequence[int]) -> None:
        sums = torch.stack([_total(module, factor) for module, factor in watched])
        if bool(sums.isfinite().all()):
            return
        module, factor = watched[int((~sums.isfinite()).nonzero()[0])]
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        raise FactorError(
            f"{factor} of module {module.name} holds NaN or Inf since batch {number} (examples {shown}); "
            "check these examples and the model's weights, or fit in float32 (general.dtype)"
        )

    return check


def _total(module: TrackedModule, factor: str) -> torch.Tensor:
    value = module.storage[factor]
    if value is None:
        raise FactorError(
            f"module {module.name} took no part in the model's forward pass, so it has no {factor}; "
            "leave it out of factors.modules"
        )
    return value.diagonal().sum() if factor.endswith("covariance") else value.sum()
