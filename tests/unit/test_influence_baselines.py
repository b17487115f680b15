"""What evidence compares scores with, taken in the pass of the scores: plain gradients and embeddings, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from influence_helpers import MODULES, settings, tiny_examples, tiny_llama, trained
from torch.nn import functional

from whence.config import Config
from whence.data.tokenization import IGNORED, Encoded
from whence.errors import DataError
from whence.influence import collectors
from whence.influence.collectors import COSINES, NORMS
from whence.influence.detail import divide_scores
from whence.influence.factors import fit_factors
from whence.influence.results import Scores
from whence.influence.scoring import Scoring

TRAIN, QUERIES = tiny_examples(6, seed=1), tiny_examples(3, seed=2)


def scored(folder: Path, config: Config) -> Scoring:
    work = trained(tiny_llama(), TRAIN, config)
    fit_factors(work, folder / "factors")
    scoring = Scoring(work, folder / "factors", folder, queries=QUERIES, baselines=True)
    scoring.compute()
    return scoring


def gradient(model: torch.nn.Module, example: Encoded) -> torch.Tensor:
    logits = model(torch.tensor([example["input_ids"]])).logits[0, :-1]
    targets = torch.tensor(example["labels"][1:])
    loss = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    weights = [model.get_submodule(name).weight for name in MODULES]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights)])


def embedding(model: torch.nn.Module, example: Encoded) -> torch.Tensor:
    with torch.no_grad():
        states = model(torch.tensor([example["input_ids"]]), output_hidden_states=True).hidden_states[-1]
    return states[0].mean(dim=0)


@pytest.mark.parametrize("steps", [None, 1], ids=["one group of queries", "a pass for each"])
def test_cosines_are_those_of_explicit_gradients_and_of_means_of_the_last_states(tmp_path, steps) -> None:
    config = settings(scores__query_batch_size=1, scores__query_gradient_accumulation_steps=steps)
    scoring, model = scored(tmp_path, config), tiny_llama()
    found = {gradient: scoring.gradient_cosines(), embedding: scoring.joined(COSINES)}
    for of, cosines in found.items():
        asked, known = ([of(model, some[row]) for row in range(len(some))] for some in (QUERIES, TRAIN))
        expected = [[float(functional.cosine_similarity(q, z, dim=0)) for z in known] for q in asked]
        np.testing.assert_allclose(cosines, expected, rtol=1e-4, atol=1e-5)
    norms = [float(gradient(model, TRAIN[row]).square().sum()) for row in range(6)]
    np.testing.assert_allclose(scoring.joined(NORMS), norms, rtol=1e-4)


def test_query_gradients_are_computed_once_for_scores_baselines_and_detail(tmp_path, monkeypatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(
        "whence.influence.scoring.QueryCollector",
        lambda *given: made.append(given[1]) or collectors.QueryCollector(*given),
    )
    scoring = scored(tmp_path, settings())
    detail = divide_scores(scoring, [(0, 1), (2, 5)])
    expected = scoring.joined()[[0, 2], [1, 5]]
    np.testing.assert_allclose([shares.sum() for shares in detail.tokens], expected, rtol=1e-4)
    assert made == [3], "all three queries, once"


def test_scores_without_baselines_say_how_to_take_them(tmp_path) -> None:
    with pytest.raises(DataError, match="no baselines") as raised:
        Scores(tmp_path).baselines  # noqa: B018
    assert "scores.baselines" in raised.value.hint
