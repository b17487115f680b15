"""Planted examples and wrong labels against hand-worked rankings and scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from whence.errors import DataError
from whence.estimates import Bootstrap
from whence.validation.evidence import NotMeasured
from whence.validation.truth import auroc_statistic, mislabeled_measures, planted_measures

IDS = [f"train-{number:02d}" for number in range(20)]
BOOTSTRAP = Bootstrap(samples=50, confidence=0.95, seed=0)


@pytest.fixture
def truth():
    planted = ["orvid"] * 4 + ["halvex"] * 2 + [""] * 14
    rows = pd.DataFrame({"example_id": IDS, "planted": planted, "flipped": [n in (6, 7) for n in range(20)]})
    return rows.sample(frac=1, random_state=0)  # in another order than the scores


def ranking(*first):
    """Scores that rank the examples ``first`` before all others."""
    scores = -np.arange(20.0)
    for rank, index in enumerate(first):
        scores[index] = 100 - rank
    return scores


def values(measures, method="influence"):
    return {measure.name: measure.methods[method].value for measure in measures}


def test_recall_reciprocal_rank_and_first_hits_are_counted_over_queries_with_a_planted_fact(truth):
    scores = np.stack(
        [
            ranking(2, 0, 10, 11, 12, 13, 14, 15, 16, 1),  # orvid on top; 3 of its 4 among the first ten
            ranking(9, 10, 5),  # two others on top; then both of halvex (the second is number 4 in ranking order)
            ranking(8),  # not about a planted fact
        ]
    )
    measures = planted_measures(
        {"influence": scores, "random": scores[::-1]}, ["orvid", "halvex", None], IDS, truth, 10, BOOTSTRAP
    )
    assert values(measures) == {
        "planted_recall": pytest.approx((3 / 4 + 1) / 2),
        "planted_mrr": pytest.approx((1 + 1 / 3) / 2),
        "planted_top1": 0.5,
    }
    assert measures[0].methods["influence"].items == 2
    assert values(measures, "random") != values(measures)


def test_recall_at_fewer_than_there_are_can_still_be_complete(truth):
    measures = planted_measures({"influence": ranking(3, 2, 1)[None]}, ["orvid"], IDS, truth, 2, BOOTSTRAP)
    assert values(measures)["planted_recall"] == 1


@pytest.mark.parametrize("planted", [[None], [""], ["unsampled"]])
def test_without_a_query_about_a_planted_example_there_is_a_reason_instead(truth, planted):
    found = planted_measures({"influence": ranking(0)[None]}, planted, IDS, truth, 10, BOOTSTRAP)
    assert isinstance(found, NotMeasured)
    assert "no query asks for a planted fact" in found.why


def test_the_auroc_is_scikit_learn_s_also_with_ties(truth):
    own = np.random.default_rng(3).integers(0, 4, size=20).astype(float)
    measures = mislabeled_measures({"influence": own}, IDS, truth, BOOTSTRAP)
    expected = roc_auc_score([number in (6, 7) for number in range(20)], own)
    assert values(measures)["mislabeled_auroc"] == pytest.approx(expected)


def test_the_auroc_of_resamples_is_scikit_learn_s_with_weights():
    rng = np.random.default_rng(4)
    positive, scores = rng.random(12) < 0.3, rng.integers(0, 5, size=12).astype(float)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=300).astype(float)
    both = [0 < row[positive].sum() < row.sum() for row in weights]
    assert 0 < sum(both) < len(both)
    expected = [
        roc_auc_score(positive, scores, sample_weight=row) if has else 0.5
        for row, has in zip(weights, both, strict=True)
    ]
    np.testing.assert_allclose(auroc_statistic(positive, scores)(weights), expected, atol=1e-12)


def test_precision_looks_at_as_many_examples_as_there_are_wrong_labels(truth):
    own = np.zeros(20)
    own[6], own[9], own[7] = 3.0, 2.0, 1.0  # the second most suspicious is a clean one: 35 of 36 pairs are in order
    measures = mislabeled_measures({"influence": own}, IDS, truth, BOOTSTRAP)
    assert values(measures) == {"mislabeled_auroc": pytest.approx(35 / 36), "mislabeled_precision": 0.5}


def test_the_interval_of_a_useless_suspicion_holds_guessing(truth):
    own = np.random.default_rng(1).random(20)
    wrong = truth.assign(flipped=np.random.default_rng(2).random(20) < 0.5)
    estimate = mislabeled_measures({"influence": own}, IDS, wrong, BOOTSTRAP)[0].methods["influence"]
    assert estimate.low < 0.5 < estimate.high


def test_labels_that_are_not_known_to_be_wrong_are_not_measured(truth):
    for known, why in ((None, "nobody knows"), (truth.assign(flipped=False), "none of the training labels")):
        found = mislabeled_measures({"influence": np.zeros(20)}, IDS, known, BOOTSTRAP)
        assert isinstance(found, NotMeasured)
        assert why in found.why
    found = mislabeled_measures({"random": np.zeros(20)}, IDS, truth, BOOTSTRAP)
    assert isinstance(found, NotMeasured)
    assert "scores.self_influence is off" in found.why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"influence": np.zeros((1, 19))}}, r"expected \(1, 20\)"),
        ({"scores": {"influence": np.full((1, 20), np.nan)}}, "not finite"),
        ({"example_ids": [*IDS[:-1], "train-99"]}, "no example 'train-99'"),
    ],
)
def test_what_does_not_belong_together_is_refused(truth, change, message):
    arguments = {"scores": {"influence": np.zeros((1, 20))}, "planted": ["orvid"], "example_ids": IDS, "truth": truth}
    with pytest.raises(DataError, match=message):
        planted_measures(**(arguments | change), k=10, bootstrap=BOOTSTRAP)
