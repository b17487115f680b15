"""Scores against an independent computation: per-example gradients by autograd, the EKFAC inverse written out."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import MODULES, blank_tokenizer, settings, tiny_examples, tiny_llama, trained
from influence_reference import Reference, close, fit_and_score
from torch.nn import functional
from transformers import LlamaForCausalLM

from whence.data.tokenization import TokenizedExamples
from whence.errors import FactorError
from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores, self_influence
from whence.models.trained import TrainedModel


@pytest.fixture(params=[{}, {"mlp_bias": True}], ids=["no bias", "bias"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    network = tiny_llama(**request.param)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture
def train() -> TokenizedExamples:
    return tiny_examples(23, seed=1)


@pytest.fixture
def queries() -> TokenizedExamples:
    return tiny_examples(5, seed=2)


@pytest.mark.parametrize("empirical", [True, False], ids=["true labels", "sampled labels"])
@pytest.mark.parametrize("damping", [None, 1e-3], ids=["heuristic damping", "damping set"])
def test_ekfac_scores_equal_the_inverse_written_out(model, train, queries, tmp_path, empirical, damping) -> None:
    config = settings(
        factors__use_empirical_fisher=empirical, scores__damping_factor=damping, general__seed=7, factors__batch_size=2
    )
    found = fit_and_score(model, config, tmp_path / "f", queries, train)

    reference = Reference(model, MODULES)
    inverse = reference.inverse_ekfac(train, None if empirical else 7)
    asked, seen = reference.gradients(queries), reference.gradients(train)
    expected = torch.tensor(
        [[sum((inverse(q, name, damping) * z[name]).sum() for name in MODULES) for z in seen] for q in asked]
    )
    close(found, expected)


def test_identity_scores_are_dot_products_of_gradients(model, train, queries, tmp_path) -> None:
    found = fit_and_score(model, settings(factors__strategy="identity"), tmp_path / "f", queries, train)

    reference = Reference(model, MODULES)
    asked, seen = reference.gradients(queries), reference.gradients(train)
    close(found, torch.tensor([[sum((q[n] * z[n]).sum() for n in MODULES) for z in seen] for q in asked]))


def test_self_influence_is_the_diagonal_of_the_pairwise_scores(model, train, tmp_path) -> None:
    config = settings(scores__query_gradient_low_rank=2)  # which self-influence does not use
    fit_factors(trained(model, train, config), tmp_path / "f")
    own = self_influence(trained(model, train, config), tmp_path / "f", tmp_path)
    pairs = pairwise_scores(trained(model, train, settings()), tmp_path / "f", train, tmp_path)
    close(own, pairs.diagonal())
    assert (own > 0).all()


@pytest.mark.parametrize("rank", [12, 64])
def test_low_rank_equals_full_rank_when_the_rank_is_full(train, queries, tmp_path, rank) -> None:
    model = tiny_llama()
    full = fit_and_score(model, settings(), tmp_path / "f", queries, train)
    low = settings(scores__query_gradient_low_rank=rank)
    close(pairwise_scores(trained(model, train, low), tmp_path / "f", queries, tmp_path), full)


def test_low_rank_scores_approach_the_full_ones_and_do_not_change_from_run_to_run(train, queries, tmp_path) -> None:
    model = tiny_llama()
    full = fit_and_score(model, settings(), tmp_path / "f", queries, train)
    errors = []
    for rank in (1, 4, 8):
        low = trained(model, train, settings(scores__query_gradient_low_rank=rank))
        first, second = (pairwise_scores(low, tmp_path / "f", queries, tmp_path) for _ in range(2))
        assert torch.equal(first, second)
        errors.append(float((first - full).norm() / full.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def test_more_weight_on_an_example_of_positive_score_lowers_the_querys_loss(train, queries, tmp_path) -> None:
    """A step of gradient descent on one example moves the query's loss by -learning rate x identity score."""
    model = tiny_llama()
    scores = fit_and_score(model, settings(factors__strategy="identity"), tmp_path / "f", queries, train)
    query = queries[0]

    def query_loss() -> float:
        with torch.no_grad():
            logits = model(torch.tensor([query["input_ids"]])).logits[0, :-1]
        return float(functional.cross_entropy(logits, torch.tensor(query["labels"][1:]), reduction="sum"))

    step = 1e-4
    for index in (int(scores[0].argmax()), int(scores[0].argmin())):
        gradient = Reference(model, MODULES).gradients(train.subset([index]))[0]
        losses = []
        for steps in (-1, 2, -1):  # down the gradient, then as far up it, then back
            with torch.no_grad():
                for name in MODULES:
                    model.get_submodule(name).weight.add_(gradient[name], alpha=steps * step)
            losses.append(query_loss())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(-float(scores[0, index]), rel=1e-2)


@pytest.mark.parametrize(
    ("change", "named"),
    [("weights", "model: "), ("modules", "modules: "), ("loss mask", "loss_on: answer then, all now")],
)
def test_factors_of_something_else_are_refused_and_the_difference_named(
    train, queries, tmp_path, change, named
) -> None:
    model = tiny_llama()
    fit_factors(trained(model, train, settings()), tmp_path / "f")
    config = settings()
    if change == "weights":
        with torch.no_grad():
            model.model.norm.weight[0] += 1e-3
    elif change == "modules":
        config = settings(factors__modules=["gate_proj"])
    else:
        config = settings(dataset__loss_on="all")
    with pytest.raises(FactorError, match=named):
        pairwise_scores(trained(model, train, config), tmp_path / "f", queries, tmp_path)


def test_factors_of_another_tokenizer_are_refused(train, queries, tmp_path) -> None:
    model = tiny_llama()
    fit_factors(trained(model, train, settings()), tmp_path / "f")
    other = TrainedModel(model, blank_tokenizer("<end>"), settings(), train)
    with pytest.raises(FactorError, match=r"tokenizer: \w+\.* then, \w+\.* now"):
        pairwise_scores(other, tmp_path / "f", queries, tmp_path)
