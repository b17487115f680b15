"""Batches by token budget: little padding, and memory that does not depend on which examples meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Batches = list[list[int]]


def plan_batches(lengths: Sequence[int], max_tokens: int, indices: Sequence[int] | None = None) -> Batches:
    """Group examples of like length into batches of at most ``max_tokens`` padded tokens (longest x count).

    Longest first, so that a batch too large for memory fails at once and not after hours. An example longer than the
    budget makes a batch of its own.

    Args:
        lengths: tokens of every example of the dataset.
        max_tokens: the budget.
        indices: the examples to group; None: all.
    """
    batches: Batches = []
    for index in sorted(range(len(lengths)) if indices is None else indices, key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def restore_order(values: torch.Tensor, batches: Batches, dim: int = 0) -> torch.Tensor:
    """Bring results that lie along ``dim`` in the order of ``batches`` back into the order of the dataset."""
    order = torch.tensor([index for batch in batches for index in batch])
    return values.index_select(dim, order.argsort())
