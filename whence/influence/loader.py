"""The loader of kronfluence's loops: batches with the randomness of each example, progress, and a watch over each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from whence.data.batching import Batches
from whence.data.tokenization import TokenizedExamples, collate


def uniforms_of(index: int, length: int, key: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each token of example ``index``, the same on every machine, ``[length]`` fp32."""
    return torch.from_numpy(np.random.default_rng((*key, index)).random(length, dtype=np.float32))


class _Indexed(Dataset[dict[str, Any]]):
    """Examples that know their place in the dataset, which keys their randomness."""

    def __init__(self, examples: TokenizedExamples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.examples[index], "index": index}


def _collate(items: list[dict[str, Any]], pad_token_id: int, key: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    batch = collate(items, pad_token_id)
    if key is not None:
        uniforms = torch.zeros(batch["input_ids"].shape)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            uniforms[row, :length] = uniforms_of(item["index"], length, key)
        batch["uniforms"] = uniforms
    return batch


@dataclass
class Loader:
    """A data loader as kronfluence's loops take it, with progress and a check after every batch.

    Attributes:
        examples: the dataset, of which ``batches`` chooses.
        batches: indices into it, one list per batch.
        pad_token_id: fills short examples on the right.
        key: what keys the random numbers for sampled labels, besides the example; None: no labels are sampled.
        check: called with the batch's indices once the batch is done; raises when something is wrong.
        description: what the progress bar says; None: no bar.
    """

    examples: TokenizedExamples
    batches: Batches
    pad_token_id: int
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
        loader = DataLoader(
            _Indexed(self.examples),
            batch_sampler=self.batches,
            collate_fn=partial(_collate, pad_token_id=self.pad_token_id, key=self.key),
        )
        total = len(self.dataset)
        hidden = self.description is None
        with tqdm(total=total, desc=self.description, unit="example", mininterval=1, disable=hidden) as progress:
            for number, batch in enumerate(loader):
                yield batch
                if self.check is not None:
                    self.check(number, self.batches[number])
                progress.update(len(self.batches[number]))
