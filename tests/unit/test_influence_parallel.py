"""A fit and its scores, shared among tasks that know each other only by the folders of their parts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import settings, tiny_examples, tiny_llama, trained

from whence.config import Config
from whence.errors import FactorError
from whence.influence.collectors import CODES, COSINES, OWN, SCORES, SKETCHES
from whence.influence.factors import decompose, fit_factors, load_factors, load_factors_info, open_fit, write_factors
from whence.influence.plan import count_parts, share
from whence.influence.scores import pairwise_scores, self_influence
from whence.influence.scoring import Scoring
from whence.influence.sketch import Sketch
from whence.processes import ALONE

TRAIN, QUERIES = tiny_examples(23, seed=1), tiny_examples(5, seed=2)


def shared(tasks: int, **more: Any) -> Config:
    return settings(general__parallel_tasks=tasks, factors__batch_size=2, scores__train_batch_size=2, **more)


def fit_in_shares(config: Config, tasks: int, folder: Path) -> Path:
    """Every step with a model of its own, as in a pod of its own."""

    def opened(name: str, *sources: str) -> Any:
        given = [folder / source for source in sources]
        return open_fit(trained(tiny_llama(), TRAIN, config), folder / name, sources=given)

    for task in range(tasks):
        fit, _ = opened(f"covariances{task}")
        fit.covariances(share(fit.plan.data_partitions, task, tasks))
    parts = [folder / f"covariances{task}" for task in range(tasks)]
    fit, _ = opened("eigenvectors", *(part.name for part in parts))
    decompose(fit, ALONE, folder / "eigenvectors", parts)
    for task in range(tasks):
        fit, _ = opened(f"lambdas{task}", "eigenvectors")
        fit.lambdas(share(fit.plan.data_partitions, task, tasks))
    fit, identity = opened("merging", "eigenvectors", *(f"lambdas{task}" for task in range(tasks)))
    write_factors(fit, identity, folder / "factors", {})
    return folder / "factors"


@pytest.mark.parametrize("strategy", ["ekfac", "diagonal", "identity"])
def test_shared_factors_are_those_of_one_task_to_the_last_bit(tmp_path: Path, strategy: str) -> None:
    config = shared(3, factors__strategy=strategy)
    merged = fit_in_shares(config, 3, tmp_path)
    fit_factors(trained(tiny_llama(), TRAIN, config), tmp_path / "alone")
    ours, expected = load_factors(merged), load_factors(tmp_path / "alone")
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name][module], expected[name][module]) for name in ours for module in ours[name])
    assert load_factors_info(merged).fingerprint == load_factors_info(tmp_path / "alone").fingerprint


def test_one_part_or_many_give_the_same_lambda_and_scores_up_to_rounding(tmp_path: Path) -> None:
    scores = {}
    for tasks in (None, 4):
        config = settings(general__parallel_tasks=tasks, factors__batch_size=2)
        model = trained(tiny_llama(torch.float32), TRAIN, config)
        fit_factors(model, tmp_path / f"{tasks}")
        scores[tasks] = pairwise_scores(model, tmp_path / f"{tasks}", QUERIES, tmp_path)
    torch.testing.assert_close(scores[None], scores[4], rtol=1e-4, atol=1e-4 * float(scores[None].std()))


def test_shared_scores_are_those_of_one_task_to_the_last_bit(tmp_path: Path) -> None:
    config = shared(3, scores__query_gradient_low_rank=4)
    model, factors = trained(tiny_llama(), TRAIN, config), tmp_path / "factors"
    fit_factors(model, factors)
    wanted = {"queries": QUERIES, "own": True, "sketch": Sketch(256, 1, seed=0), "baselines": True}
    for task in range(3):
        work = Scoring(model, factors, tmp_path / f"{task}", **wanted)
        work.compute(share(work.data_partitions, task, 3))
    others = [tmp_path / f"{task}" for task in range(3)]
    merged, alone = (Scoring(model, factors, tmp_path / name, of, **wanted) for name, of in (("m", others), ("a", [])))
    alone.compute()
    close = {"rtol": 1e-6, "atol": 1e-6 * float(merged.joined().std())}  # products of more rows at once; other signs
    torch.testing.assert_close(merged.joined(), pairwise_scores(model, factors, QUERIES, tmp_path / "alone"), **close)
    for name in (SCORES, OWN, CODES, COSINES):
        assert torch.equal(merged.joined(name), alone.joined(name))
    assert torch.equal(merged.gradient_cosines(), alone.gradient_cosines())
    torch.testing.assert_close(merged.joined(OWN), self_influence(model, factors, tmp_path / "alone"), **close)
    assert torch.equal(merged.of_queries(SKETCHES), alone.of_queries(SKETCHES))


def test_how_many_queries_are_held_at_once_changes_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.influence.queries.OVERSAMPLING", 0)  # so that chance matters
    fit_factors(trained(tiny_llama(), TRAIN, settings()), tmp_path / "factors")
    found = [
        pairwise_scores(trained(tiny_llama(), TRAIN, config), tmp_path / "factors", QUERIES, tmp_path)
        for config in (
            settings(
                scores__query_gradient_low_rank=2,
                scores__query_batch_size=1,
                scores__query_gradient_accumulation_steps=steps,
            )
            for steps in (1, 3, None)
        )
    ]
    for scores in found[1:]:
        torch.testing.assert_close(scores, found[0], rtol=1e-4, atol=1e-5 * float(found[0].std()))


def test_a_missing_part_is_named_and_parts_of_other_settings_do_not_count(tmp_path: Path) -> None:
    config = shared(2)
    fit_in_shares(config, 2, tmp_path)
    other = shared(2, general__seed=1)
    sources = [tmp_path / name for name in ("eigenvectors", "lambdas0", "lambdas1")]
    fit, identity = open_fit(trained(tiny_llama(), TRAIN, other), tmp_path / "merging", sources=sources)
    with pytest.raises(FactorError, match=r"eigen_model\.layers\.0\.mlp\.gate_proj is missing"):
        write_factors(fit, identity, tmp_path / "factors", {})

    shutil.rmtree(tmp_path / "lambdas1")
    fit, identity = open_fit(trained(tiny_llama(), TRAIN, config), tmp_path / "merging", sources=sources)
    with pytest.raises(FactorError, match=r"lambda_data_partition1_.* is missing"):
        write_factors(fit, identity, tmp_path / "factors", {})


@pytest.mark.parametrize(
    ("batches", "wanted", "tasks", "parts"),
    [(10, None, 1, 1), (1000, None, 1, 4), (1000, None, 3, 6), (10, None, 8, 8), (2, None, 8, 2), (9, 5, 8, 5)],
)
def test_every_task_gets_as_many_parts_of_the_data(batches: int, wanted: int, tasks: int, parts: int) -> None:
    assert count_parts(batches, wanted, tasks) == parts
    shares = [share(parts, task, tasks) for task in range(tasks)]
    assert sorted(part for some in shares for part in some) == list(range(parts))
