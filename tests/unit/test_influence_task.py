"""The loss that factors and scores rest on."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import VOCABULARY, tiny_examples, tiny_llama
from torch.nn import functional

from whence.influence.task import LanguageModelingTask, sample_labels


@pytest.mark.parametrize("tracked", ["model.layers.0.mlp.up_proj", "lm_head"])
def test_the_loss_is_the_summed_cross_entropy_over_the_mask(tracked: str) -> None:
    model, examples = tiny_llama(), tiny_examples(5, seed=1)
    task = LanguageModelingTask(model, [tracked])
    assert task.keeps_logits == (tracked != "lm_head")
    batch = examples.batch(range(5))
    expected = 0.0
    for index in range(5):
        item = examples[index]
        logits = model(torch.tensor([item["input_ids"]])).logits[0, :-1]
        expected += float(functional.cross_entropy(logits, torch.tensor(item["labels"][1:]), reduction="sum"))
    assert float(task.compute_train_loss(batch, model)) == pytest.approx(expected, rel=1e-6)
    assert float(task.compute_measurement(batch, model)) == pytest.approx(expected, rel=1e-6)


def test_logits_are_computed_only_where_some_example_counts() -> None:
    model, examples = tiny_llama(), tiny_examples(4, seed=1)
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    batch = examples.batch(range(4))
    LanguageModelingTask(model, []).compute_train_loss(batch, model)
    assert seen[0][1] == int((batch["labels"][:, 1:] != -100).any(0).sum()) < batch["input_ids"].shape[1]


def test_an_example_without_counted_tokens_has_no_loss() -> None:
    model, examples = tiny_llama(), tiny_examples(1, seed=1)
    batch = examples.batch([0])
    batch["labels"][:] = -100
    loss = LanguageModelingTask(model, []).compute_train_loss(batch, model)
    loss.backward()
    assert float(loss) == 0


def test_labels_are_drawn_in_proportion_to_their_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    draws = 40_000
    labels = sample_labels(logits.expand(draws, -1), torch.rand(draws, generator=generator))
    found = torch.bincount(labels, minlength=VOCABULARY) / draws
    assert (found - logits.softmax(0)).abs().max() < 0.01


def test_impossible_labels_are_never_drawn_even_at_the_ends() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(3, -1)
    labels = sample_labels(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert labels.tolist() == [1, 2, 2]
