"""The loader of kronfluence's loops: batches with the randomness of each example, progress, and a watch over each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kronfluence.utils.constants import ACTIVATION_COVARIANCE_MATRIX_NAME

from whence.data.batching import Batches
from whence.data.tokenization import TokenizedExamples
from whence.errors import FactorError
from whence.influence.linear import FastLinear
from whence.progress import progress


def uniforms_of(index: int, length: int, key: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each token of example ``index``, the same on every machine, ``[length]`` fp32."""
    return torch.from_numpy(np.random.default_rng((*key, index)).random(length, dtype=np.float32))


@dataclass
class Loader:
    """A data loader as kronfluence's loops take it, with progress and a check after every batch.

    Attributes:
        examples: the dataset, of which ``batches`` chooses.
        batches: indices into it, one list per batch.
        key: what keys the random numbers for sampled labels, besides the example; None: no labels are sampled.
        check: called with the batch's indices once the batch is done; raises when something is wrong.
        description: what the progress bar says; None: no bar.
    """

    examples: TokenizedExamples
    batches: Batches
    key: tuple[int, ...] | None = None
    check: Callable[[int, Sequence[int]], None] | None = None
    description: str | None = None

    @property
    def dataset(self) -> Sequence[int]:
        """The chosen examples; kronfluence asks for their number."""
        return [index for batch in self.batches for index in batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        total = len(self.dataset)
        hidden = self.description is None
        with progress(total=total, desc=self.description, unit="example", disable=hidden) as bar:
            for number, indices in enumerate(self.batches):
                yield self._batch(indices)
                if self.check is not None:
                    self.check(number, indices)
                bar.update(len(indices))

    def _batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = self.examples.batch(indices)
        if self.key is not None:
            batch["uniforms"] = torch.zeros(batch["input_ids"].shape)
            for row, index in enumerate(indices):
                length = int(batch["attention_mask"][row].sum())
                batch["uniforms"][row, :length] = uniforms_of(index, length, self.key)
        return batch


def finite_check(modules: Iterable[FastLinear], factors: Sequence[str]) -> Callable[[int, Sequence[int]], None]:
    """A check for :class:`Loader` that the summed ``factors`` of all modules are finite.

    It costs one synchronisation with the device per batch. A sum of squares is not finite as soon as a term is not,
    and a covariance's entries are bounded by its diagonal, so the trace of one and the sum of the other tell it all.
    """
    watched = [
        (module, factor)
        for module in modules
        for factor in factors
        if module.sums_inputs or factor != ACTIVATION_COVARIANCE_MATRIX_NAME
    ]

    def check(number: int, indices: Sequence[int]) -> None:
        sums = torch.stack([_total(module, factor) for module, factor in watched])
        if bool(sums.isfinite().all()):
            return
        module, factor = watched[int((~sums.isfinite()).nonzero()[0])]
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        raise FactorError(
            f"{factor} of module {module.name} holds NaN or Inf since batch {number} (examples {shown})",
            hint="check these examples and the model's weights, or fit in float32 (general.dtype)",
        )

    return check


def _total(module: FastLinear, factor: str) -> torch.Tensor:
    value: torch.Tensor | None = module.storage[factor]
    if value is None:
        raise FactorError(
            f"module {module.name} took no part in the model's forward pass, so it has no {factor}",
            hint="leave it out of factors.modules",
        )
    return value.diagonal().sum() if factor.endswith("covariance") else value.sum()
