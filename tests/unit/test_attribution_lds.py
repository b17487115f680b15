"""The linear datamodeling score, agreement of ranks and crossed intervals against scipy and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from whence.errors import DataError
from whence.estimates import Bootstrap, rank_correlation
from whence.influence.ranking import best_first
from whence.validation.lds import lds_measure, linear_datamodeling_scores, random_subsets

BOOTSTRAP = Bootstrap(samples=200, confidence=0.95, seed=0)


@pytest.fixture
def linear():
    """Models that are exactly linear in their examples: outcome = sum of true effects of the examples kept."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(5, 40))  # log-probability that each example adds to each query
    subsets = random_subsets(40, 0.5, 30, seed=1)
    outcomes = np.stack([effects[:, list(subset)].sum(axis=1) for subset in subsets])
    return effects, subsets, outcomes


def test_true_effects_score_one_and_their_opposite_minus_one(linear):
    effects, subsets, outcomes = linear
    assert linear_datamodeling_scores(effects, subsets, outcomes) == pytest.approx(1)
    assert linear_datamodeling_scores(-effects, subsets, outcomes) == pytest.approx(-1)


def test_it_is_spearman_of_scipy_on_noisy_scores(linear):
    effects, subsets, outcomes = linear
    noisy = effects + np.random.default_rng(2).normal(size=effects.shape)
    found = linear_datamodeling_scores(noisy, subsets, outcomes)
    for query in range(5):
        predicted = [sum(noisy[query, example] for example in subset) for subset in subsets]
        ranks = pearsonr(rankdata(predicted), rankdata(outcomes[:, query])).statistic
        assert found[query] == pytest.approx(ranks)
    assert 0.2 < found.mean() < 0.99


def test_random_scores_have_an_interval_around_zero(linear):
    effects, subsets, outcomes = linear
    scores = {"influence": effects, "random": np.random.default_rng(5).normal(size=effects.shape)}
    measure = lds_measure(scores, subsets, outcomes, 0.5, BOOTSTRAP)
    assert measure.methods["influence"].low == pytest.approx(1)
    assert measure.methods["random"].low < 0 < measure.methods["random"].high


def test_scores_that_say_nothing_correlate_with_nothing(linear):
    _, subsets, outcomes = linear
    assert (linear_datamodeling_scores(np.zeros((5, 40)), subsets, outcomes) == 0).all()


def test_asking_for_more_subsets_keeps_those_there_are():
    few, more = random_subsets(50, 0.5, 4, seed=3), random_subsets(50, 0.5, 9, seed=3)
    assert more[:4] == few
    assert {len(subset) for subset in more} == {25}
    assert len(set(more)) == 9
    assert random_subsets(50, 0.5, 4, seed=4) != few


def test_too_few_subsets_are_refused(linear):
    effects, subsets, outcomes = linear
    with pytest.raises(DataError, match=r"raise validation\.lds_subsets"):
        linear_datamodeling_scores(effects, subsets[:2], outcomes[:2])


def test_agreement_of_ranks_is_scipy_s_query_by_query():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(3, 30))
    other = one + rng.normal(size=one.shape)
    expected = [spearmanr(one[row], other[row]).statistic for row in range(3)]
    assert rank_correlation(one, other) == pytest.approx(expected)
    assert rank_correlation(one, np.exp(one)) == pytest.approx(1)


def test_the_best_come_first_and_of_equal_ones_the_earlier():
    assert best_first(np.array([[0.0, 2.0, 1.0, 2.0]]), 3).tolist() == [[1, 3, 2]]


def test_a_crossed_interval_is_wider_than_one_that_takes_seeds_for_independent_queries():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 1)) + rng.normal(size=(1, 4))  # a seed moves all queries alike
    crossed, naive = BOOTSTRAP.crossed_mean(values), BOOTSTRAP.mean(values.ravel())
    assert crossed.value == pytest.approx(naive.value)
    assert crossed.high - crossed.low > naive.high - naive.low
    assert crossed.items == 12
