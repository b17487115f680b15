"""The loader: batches padded to their own longest, watched, with randomness that belongs to the example."""

from __future__ import annotations

import torch
from influence_helpers import tiny_examples

from whence.data.batching import plan_batches
from whence.influence.loader import Loader, uniforms_of


def test_a_batch_is_padded_to_its_own_longest_and_checked_once_done() -> None:
    examples, seen = tiny_examples(7, seed=3), []
    batches = plan_batches(examples.lengths, 25)
    loader = Loader(examples, batches, key=(5,), check=lambda number, indices: seen.append((number, indices)))
    for number, batch in enumerate(loader):
        assert len(seen) == number  # the check comes after the batch was worked on
        longest = max(examples.lengths[index] for index in batches[number])
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            name: (len(batches[number]), longest) for name in ("input_ids", "attention_mask", "labels", "uniforms")
        }
        for row, index in enumerate(batches[number]):
            length = examples.lengths[index]
            assert torch.equal(batch["uniforms"][row, :length], uniforms_of(index, length, (5,)))
    assert seen == list(enumerate(batches))


def test_random_numbers_differ_between_examples_and_keys() -> None:
    drawn = [uniforms_of(index, 4, key) for index in (0, 1) for key in ((0, 1), (0, 2), (1, 1))]
    assert len({tuple(value.tolist()) for value in drawn}) == len(drawn)
    assert all(((value >= 0) & (value < 1)).all() for value in drawn)
