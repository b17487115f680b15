"""The table of most helpful and most harmful examples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from whence.influence.ranking import COLUMNS, influence_table, z_scores

QUERIES = pd.DataFrame({"query_id": ["q0", "q1"]})
TRAIN = pd.DataFrame(
    {
        "example_id": [f"train-{index}" for index in range(5)],
        "prompt": list("abcde"),
        "completion": list("vwxyz"),
        "label": list("vwxyz"),
    }
)
SCORES = np.array([[0.5, -2.0, 3.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])


def end(table: pd.DataFrame, query: str, direction: str) -> pd.DataFrame:
    return table[(table["query_id"] == query) & (table["direction"] == direction)]


def test_both_ends_are_listed_strongest_first_with_text_and_sign_in_words() -> None:
    table = influence_table(SCORES, QUERIES, TRAIN, top_k=2)
    assert tuple(table.columns) == COLUMNS
    helpful, harmful = end(table, "q0", "helpful"), end(table, "q0", "harmful")
    assert helpful["example_id"].tolist() == ["train-2", "train-0"]
    assert harmful["example_id"].tolist() == ["train-1", "train-4"]
    assert helpful["rank"].tolist() == harmful["rank"].tolist() == [1, 2]
    assert helpful["prompt"].tolist() == ["c", "a"]
    assert helpful["sign_in_words"].str.contains("lowered").all()
    assert harmful["sign_in_words"].str.contains("raised").all()


def test_only_scores_of_the_right_sign_are_listed_and_ties_keep_the_datasets_order() -> None:
    table = influence_table(SCORES, QUERIES, TRAIN, top_k=4)
    assert len(end(table, "q0", "helpful")) == 2  # the third and fourth best do not help
    assert end(table, "q1", "harmful").empty
    assert end(table, "q1", "helpful")["example_id"].tolist() == [f"train-{index}" for index in range(4)]


def test_z_scores_are_over_the_training_set_per_query() -> None:
    values = SCORES
    found = z_scores(values)
    assert found[0] == pytest.approx((values[0] - values[0].mean()) / values[0].std())
    assert np.array_equal(found[1], np.zeros(5))


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="2 queries and 5 examples"):
        influence_table(SCORES.T, QUERIES, TRAIN, top_k=1)
