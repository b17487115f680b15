"""Whether the examples known to be behind an answer are ranked first: recall, reciprocal rank, first hit. No torch.

A planted fact stands in a few training examples and nowhere else, so these are the cause of its answer, not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from whence.errors import DataError
from whence.validation.estimates import Bootstrap, best_first, require_scores
from whence.validation.evidence import Measure, Method, NotMeasured

NAME = "planted"


def planted_measures(
    scores: Mapping[Method, np.ndarray],
    planted: Sequence[str | None],
    example_ids: Sequence[str],
    truth: pd.DataFrame | None,
    k: int,
    bootstrap: Bootstrap,
) -> list[Measure] | NotMeasured:
    """Compare each method's full ranking of the training examples with the truth.

    Args:
        scores: by method ``[queries, examples]``, positive is helpful.
        planted: id of the fact each query asks for; None or empty for other queries, which are left out.
        example_ids: of the columns of ``scores``.
        truth: one row per training example: ``example_id``, ``planted`` (fact id or empty); None where nobody knows.
        k: how many of the first examples recall looks at.

    Returns:
        ``planted_recall`` (mean share of a query's planted examples among its first k, of at most k),
        ``planted_mrr`` (mean of 1 / rank of the first planted one) and ``planted_top1``, or why there is nothing.

    Raises:
        DataError: shapes or ids do not agree, or a score is not finite.
    """
    for method, matrix in scores.items():
        require_scores(matrix, (len(planted), len(example_ids)), f"planted examples by {method}")
    if truth is None:
        return NotMeasured(name=NAME, why="nobody knows which training examples are behind the answers of this data")
    facts = rows_of(truth, example_ids)["planted"].fillna("").to_numpy()
    asked = [(row, facts == fact) for row, fact in enumerate(planted) if fact and (facts == fact).any()]
    if not asked:
        return NotMeasured(name=NAME, why="no query asks for a planted fact that stands in a training example")
    rows = [row for row, _ in asked]
    wanted = np.array([of_fact for _, of_fact in asked])
    recall, reciprocal, first = {}, {}, {}
    for method, matrix in scores.items():
        order = best_first(matrix[rows], matrix.shape[1])
        found = np.take_along_axis(wanted, order, axis=1)
        recall[method] = found[:, :k].sum(axis=1) / np.minimum(wanted.sum(axis=1), k)
        reciprocal[method] = 1 / (found.argmax(axis=1) + 1)
        first[method] = found[:, 0].astype(float)
    return [
        Measure(
            name="planted_recall",
            title=f"Planted examples found (recall at {k})",
            explanation=f"Share of the examples known to hold a fact among the first {k} for the question about it.",
            higher_is_better=True,
            methods=bootstrap.means(recall),
        ),
        Measure(
            name="planted_mrr",
            title="Mean reciprocal rank of the first planted example",
            explanation="1 where the first example is a planted one, 1/2 where the second is, and so on.",
            higher_is_better=True,
            methods=bootstrap.means(reciprocal),
        ),
        Measure(
            name="planted_top1",
            title="Planted example ranked first",
            explanation="Share of the questions whose first example is one that holds the fact.",
            higher_is_better=True,
            methods=bootstrap.means(first),
        ),
    ]


def rows_of(truth: pd.DataFrame, example_ids: Sequence[str]) -> pd.DataFrame:
    """The truth of the examples, in their order.

    Raises:
        DataError: it does not know one of them.
    """
    rows = truth.set_index("example_id")
    strange = [example_id for example_id in example_ids if example_id not in rows.index]
    if strange:
        raise DataError(f"the truth knows no example {strange[0]!r}; scores and truth are of different training data")
    return rows.loc[list(example_ids)]
