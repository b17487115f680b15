"""Token-budget batches: nothing lost, nothing over budget, everything back in its place."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from whence.data.batching import plan_batches, restore_order


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_every_example_is_in_one_batch_and_no_batch_exceeds_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_the_longest_come_first_and_neighbours_are_alike() -> None:
    assert plan_batches([3, 9, 4, 9, 1], 18) == [[1, 3], [2, 0, 4]]


def test_a_part_of_the_examples_can_be_batched() -> None:
    assert plan_batches([3, 9, 4], 100, indices=[0, 2]) == [[2, 0]]


@given(st.permutations(range(7)))
def test_results_come_back_in_the_order_of_the_dataset(order: list[int]) -> None:
    batches = [order[:2], order[2:3], order[3:]]
    values = torch.tensor([[index, 10 * index] for index in order])
    assert restore_order(values, batches).tolist() == [[index, 10 * index] for index in range(7)]
    assert restore_order(values.T, batches, dim=1).tolist() == values.T.sort(dim=1).values.tolist()
