"""Fitted factors: what is written, who can read it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from influence_helpers import MODULES, PAD, RARE, settings, tiny_examples, tiny_llama, trained
from influence_reference import stock_analyzer
from kronfluence.analyzer import Analyzer
from kronfluence.arguments import FactorArguments, ScoreArguments
from transformers import LlamaForCausalLM

from whence.data.tokenization import Encoded, TokenizedExamples
from whence.errors import DataError, FactorError, ResourceError
from whence.influence import memory
from whence.influence.factors import fit_factors, load_factors, load_factors_info
from whence.influence.layout import factors_folder
from whence.influence.scores import pairwise_scores

STRATEGIES = ["ekfac", "kfac", "diagonal", "identity"]


def plain_analyzer(model: LlamaForCausalLM, folder: Path) -> Analyzer:
    return stock_analyzer(model, MODULES, folder, collate_fn=tiny_examples(0, seed=0).collate)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plain_kronfluence_loads_the_factors_and_gives_the_same_scores(tmp_path: Path, strategy: str) -> None:
    train, queries = tiny_examples(11, seed=1), tiny_examples(3, seed=2)
    config = settings(factors__strategy=strategy)
    fit_factors(trained(tiny_llama(torch.float32), train, config), tmp_path / "f")
    ours = pairwise_scores(trained(tiny_llama(torch.float32), train, config), tmp_path / "f", queries, tmp_path)

    plain = plain_analyzer(tiny_llama(torch.float32), tmp_path / "f")
    assert set(plain.load_all_factors(strategy)) == set(load_factors(tmp_path / "f"))
    plain.compute_pairwise_scores(
        "scores", strategy, queries, train, 3, 4, score_args=ScoreArguments(damping_factor=None)
    )
    theirs = plain.load_pairwise_scores("scores")["all_modules"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.std()))


def test_factors_equal_those_of_plain_kronfluence_whatever_the_batches(tmp_path: Path) -> None:
    train = tiny_examples(17, seed=1)
    config = settings(factors__use_empirical_fisher=True, factors__batch_size=3)
    fit_factors(trained(tiny_llama(torch.float32), train, config), tmp_path / "f")

    plain = plain_analyzer(tiny_llama(torch.float32), tmp_path / "stock")
    plain.fit_all_factors("ekfac", train, 5, factor_args=FactorArguments(use_empirical_fisher=True))
    ours, theirs = load_factors(tmp_path / "f"), plain.load_all_factors("ekfac")
    for name in ("activation_eigenvalues", "gradient_eigenvalues", "lambda_matrix"):
        for module in MODULES:
            expected = theirs[name][module]
            error = (ours[name][module] - expected).norm() / expected.norm()
            assert error < 1e-4, (name, module, error)


def test_sampled_labels_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    train = tiny_examples(17, seed=1)
    for size in (1, 8):
        fit_factors(trained(tiny_llama(), train, settings(factors__batch_size=size)), tmp_path / str(size))
    one, eight = load_factors(tmp_path / "1"), load_factors(tmp_path / "8")
    for module in MODULES:
        torch.testing.assert_close(one["lambda_matrix"][module], eight["lambda_matrix"][module], rtol=1e-3, atol=1e-6)


def test_another_seed_samples_other_labels(tmp_path: Path) -> None:
    train = tiny_examples(17, seed=1)
    for seed in (0, 1):
        fit_factors(trained(tiny_llama(), train, settings(general__seed=seed)), tmp_path / str(seed))
    zero, one = load_factors(tmp_path / "0"), load_factors(tmp_path / "1")
    assert all(not torch.allclose(zero["lambda_matrix"][m], one["lambda_matrix"][m], rtol=1e-2) for m in MODULES)


def test_covariances_are_dropped_and_the_rest_is_described(tmp_path: Path) -> None:
    train = tiny_examples(9, seed=1)
    info = fit_factors(trained(tiny_llama(), train, settings(factors__num_samples=5)), tmp_path / "f")
    files = list(factors_folder(tmp_path / "f", "ekfac").glob("*.safetensors"))
    assert {file.stem for file in files} == {
        "activation_eigenvalues",
        "activation_eigenvectors",
        "gradient_eigenvalues",
        "gradient_eigenvectors",
        "lambda_matrix",
        "num_lambda_processed",
    }
    assert load_factors_info(tmp_path / "f") == info
    assert info.modules == MODULES
    assert info.shapes[MODULES[0]] == (20, 12)
    assert info.num_examples == 5
    assert info.data == train.subset(range(5)).fingerprint
    assert info.size_bytes == sum(file.stat().st_size for file in files)
    assert {"covariance", "eigendecomposition", "lambda", "total"} == set(info.seconds)
    assert "kronfluence" in info.versions


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_llama()
    model.train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: (parameter.requires_grad, id(parameter)) for name, parameter in model.named_parameters()}
    modules = [(name, type(module)) for name, module in model.named_modules()]
    fit_factors(trained(model, tiny_examples(3, seed=1), settings()), tmp_path / "f")
    assert {name: (p.requires_grad, id(p)) for name, p in model.named_parameters()} == before
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert model.training


def test_nan_names_module_factor_batch_and_examples(tmp_path: Path) -> None:
    model, examples = tiny_llama(), tiny_examples(4, seed=1)
    shortest = [Encoded([3, 4, RARE], [-100, -100, RARE], 0), Encoded([3, 4], [-100, 4], 0)]
    train = TokenizedExamples([Encoded(**examples[index], truncated=0) for index in range(4)] + shortest, PAD)
    with torch.no_grad():
        model.model.embed_tokens.weight[RARE] = torch.nan
    config = settings(factors__batch_size=1, general__max_length=14)  # fourteen tokens a batch, longest first
    message = f"activation_covariance of module {MODULES[0]} .* batch 3 \\(examples 3, 4\\)"
    with pytest.raises(FactorError, match=message):
        fit_factors(trained(model, train, config), tmp_path / "f")
    with pytest.raises(FactorError, match="fit the factors again"):
        load_factors_info(tmp_path / "f")


def test_a_damaged_factor_file_is_refused(tmp_path: Path) -> None:
    model, train = tiny_llama(), tiny_examples(3, seed=1)
    fit_factors(trained(model, train, settings()), tmp_path / "f")
    file = factors_folder(tmp_path / "f", "ekfac") / "lambda_matrix.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(FactorError, match=r"lambda_matrix\.safetensors is missing or damaged"):
        pairwise_scores(trained(model, train, settings()), tmp_path / "f", train, tmp_path)


def test_too_little_memory_is_refused_before_anything_is_fitted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(ResourceError, match=r"not enough memory for .*KiB.* but .* are there; track fewer modules"):
        fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), settings()), tmp_path / "f")


def test_too_little_disk_is_refused_before_anything_is_fitted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ResourceError, match="not enough disk for the factors"):
        fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), settings()), tmp_path / "f")


def test_no_examples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        fit_factors(trained(tiny_llama(), tiny_examples(0, seed=1), settings()), tmp_path / "f")


def test_the_estimate_of_the_factors_is_what_is_written(tmp_path: Path) -> None:
    info = fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), settings()), tmp_path / "f")
    sizes = memory.factor_sizes(info.shapes, "ekfac")
    written = info.size_bytes
    assert sizes["eigenvectors"] + sizes["lambda"] == pytest.approx(written, rel=0.3)  # headers and eigenvalues
