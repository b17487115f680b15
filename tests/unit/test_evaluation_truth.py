"""The demo's known truth against hand-worked rankings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from whence.errors import DataError
from whence.evaluation.truth import planted_truth_metrics

IDS = [f"train-{number:02d}" for number in range(20)]


@pytest.fixture
def truth():
    planted = ["orvane"] * 4 + ["halvex"] * 2 + [""] * 14
    rows = pd.DataFrame({"example_id": IDS, "planted": planted, "flipped": [n in (6, 7) for n in range(20)]})
    return rows.sample(frac=1, random_state=0)  # in another order than the scores


def ranking(*first):
    """Scores that rank the examples ``first`` before all others."""
    scores = -np.arange(20.0)
    for rank, index in enumerate(first):
        scores[index] = 100 - rank
    return scores


def test_top_rank_and_recall_are_counted_over_queries_with_a_planted_fact(truth):
    scores = np.stack(
        [
            ranking(2, 0, 10, 11, 12, 13, 14, 15, 16, 1),  # orvane on top; 3 of its 4 among the first ten
            ranking(9, 5),  # another example on top; then both of halvex (the second is number 4 in ranking order)
            ranking(8),  # not about a planted fact
        ]
    )
    metrics = planted_truth_metrics(scores, ["orvane", "halvex", None], IDS, truth)
    assert metrics["planted_queries"] == 2
    assert metrics["planted_top1_hits"] == 1
    assert metrics["planted_top1_share"] == 0.5
    assert metrics["planted_recall_at_10"] == pytest.approx((3 / 4 + 1) / 2)
    assert "flipped_auroc" not in metrics


def test_flipped_labels_are_found_by_self_influence(truth):
    own = np.zeros(20)
    own[6], own[7] = 3.0, 1.0  # flipped
    own[9] = 2.0  # the one clean example between them: 35 of 36 pairs are in order
    metrics = planted_truth_metrics(ranking()[None], [None], IDS, truth, own)
    assert metrics == {"flipped_auroc": pytest.approx(35 / 36)}


def test_the_auroc_is_scikit_learn_s_also_with_ties(truth):
    own = np.random.default_rng(3).integers(0, 4, size=20).astype(float)
    expected = roc_auc_score([number in (6, 7) for number in range(20)], own)
    assert planted_truth_metrics(ranking()[None], [None], IDS, truth, own)["flipped_auroc"] == pytest.approx(expected)


def test_queries_whose_examples_were_not_sampled_are_counted_and_left_out(truth):
    metrics = planted_truth_metrics(np.stack([ranking(0), ranking(0)]), ["orvane", "unsampled"], IDS, truth)
    assert (metrics["planted_queries"], metrics["planted_queries_without_examples"]) == (1, 1)
    assert planted_truth_metrics(ranking(0)[None], ["unsampled"], IDS, truth) == {"planted_queries_without_examples": 1}


def test_without_flipped_labels_there_is_no_auroc(truth):
    assert planted_truth_metrics(ranking()[None], [""], IDS, truth.assign(flipped=False), np.zeros(20)) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros((1, 19))}, "expected 1 queries x 20 examples"),
        ({"scores": np.full((1, 20), np.nan)}, "not finite"),
        ({"example_ids": [*IDS[:-1], "train-99"]}, "no example 'train-99'"),
        ({"self_influence": np.full(20, np.inf)}, "not finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(truth, change, message):
    arguments = {"scores": np.zeros((1, 20)), "planted": ["orvane"], "example_ids": IDS, "truth": truth}
    with pytest.raises(DataError, match=message):
        planted_truth_metrics(**(arguments | change))
