"""Influence by source: shares of what helps and of what harms, written out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_helpers import material

from whence.estimates import Bootstrap
from whence.influence.sources import influence_by_source, shares_by_query
from whence.report import data
from whence.report.report import report
from whence.report.tables import write_tables

SCORES = np.array([[3.0, 1.0, -2.0, 0.0], [-1.0, -1.0, -2.0, 0.5]], np.float32)
SOURCES = ["books", "crawl", "crawl", "books"]


def test_shares_are_of_the_sum_of_each_sign() -> None:
    shares = shares_by_query(SCORES, SOURCES)
    assert shares["positive"].to_dict("list") == {"books": [0.75, 1.0], "crawl": [0.25, 0.0]}
    assert shares["negative"].to_dict("list") == {"books": [0.0, 0.25], "crawl": [1.0, 0.75]}


def test_a_query_without_a_score_of_a_sign_has_no_share_of_it() -> None:
    shares = shares_by_query(np.array([[1.0, 2.0]]), ["a", "b"])
    assert shares["negative"].to_numpy().tolist() == [[0.0, 0.0]]


def test_means_over_queries_stand_beside_the_share_of_rows_with_intervals() -> None:
    found = influence_by_source(SCORES, ["books", "crawl", "crawl", "crawl"], Bootstrap(500, 0.9, seed=0))
    assert found["source"].tolist() == ["crawl", "books"]
    assert found["rows"].tolist() == [3, 1]
    assert found["share_of_rows"].tolist() == [0.75, 0.25]
    crawl = found.iloc[0]
    assert crawl["positive_share"] == pytest.approx((0.25 + 1.0) / 2)
    assert crawl["negative_share"] == pytest.approx((1.0 + 0.75) / 2)
    # Two queries: a resample is one of them twice, or both.
    assert (crawl["positive_low"], crawl["positive_high"]) == (0.25, 1.0)


def test_all_scores_count_and_not_only_those_that_are_listed() -> None:
    """Against a sum by pandas over the whole matrix."""
    rng = np.random.default_rng(0)
    scores, sources = rng.normal(size=(5, 40)), rng.choice(["a", "b", "c"], 40)
    long = pd.DataFrame(scores).T.assign(source=sources).melt("source", var_name="query", value_name="score")
    helpful = long[long["score"] > 0].groupby(["query", "source"])["score"].sum().unstack(fill_value=0.0)
    expected = helpful.div(helpful.sum(axis=1), axis=0)
    np.testing.assert_allclose(shares_by_query(scores, list(sources))["positive"], expected, rtol=1e-12)


def test_report_and_tables_show_sources_escaped_and_only_where_there_are_several(tmp_path) -> None:
    several = material()
    page = report(several).html
    assert "Influence by source" in page
    assert "&lt;b&gt;crawl" in page
    assert "<b>crawl" not in page
    write_tables(tmp_path, several)
    table = pd.read_csv(tmp_path / "sources.csv")
    pd.testing.assert_frame_equal(table, data.by_source(several), check_dtype=False)
    several.train.frame["source"] = "books"
    assert "Influence by source" not in report(several).html
