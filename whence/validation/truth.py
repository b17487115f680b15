"""Attributions against what is known to be true of the training data: planted facts and wrong labels. No torch.

A planted fact stands in a few training examples and nowhere else, so these are the cause of its answer, not a guess:
are they ranked first? And a model has to bend for an example whose label contradicts all others like it, so such an
example has more influence on itself (Koh & Liang, 2017, sec. 5.4; Pruthi et al., 2020): does self-influence find it?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from whence.errors import DataError
from whence.estimates import Bootstrap, Statistic
from whence.influence.ranking import best_first
from whence.validation.evidence import Measure, Method, NotMeasured

PLANTED, MISLABELED = "planted", "mislabeled"
_BASELINE = "Beside influence stands the plain squared gradient norm (under gradient cosine)."


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
        _require_scores(matrix, (len(planted), len(example_ids)), f"planted examples by {method}")
    if truth is None:
        return NotMeasured(name=PLANTED, why="nobody knows which training examples are behind the answers of this data")
    facts = _rows_of(truth, example_ids)["planted"].fillna("").to_numpy()
    rows_and_facts = [(row, facts == fact) for row, fact in enumerate(planted) if fact and (facts == fact).any()]
    if not rows_and_facts:
        return NotMeasured(name=PLANTED, why="no query asks for a planted fact that stands in a training example")
    rows = [row for row, _ in rows_and_facts]
    planted_rows = np.array([of_fact for _, of_fact in rows_and_facts])
    recall, reciprocal, first = {}, {}, {}
    for method, matrix in scores.items():
        order = best_first(matrix[rows], matrix.shape[1])
        hits = np.take_along_axis(planted_rows, order, axis=1)
        recall[method] = hits[:, :k].sum(axis=1) / np.minimum(planted_rows.sum(axis=1), k)
        reciprocal[method] = 1 / (hits.argmax(axis=1) + 1)
        first[method] = hits[:, 0].astype(float)
    measures = {
        "planted_recall": (
            recall, f"Planted examples found (recall at {k})",
            f"Share of the examples known to hold a fact among the first {k} for the question about it."),
        "planted_mrr": (
            reciprocal, "Mean reciprocal rank of the first planted example",
            "1 where the first example is a planted one, 1/2 where the second is, and so on."),
        "planted_top1": (
            first, "Planted example ranked first",
            "Share of the questions whose first example is one that holds the fact."),
    }  # fmt: skip
    return [
        Measure(name=name, title=title, explanation=text, higher_is_better=True, methods=bootstrap.means(values))
        for name, (values, title, text) in measures.items()
    ]


def mislabeled_measures(
    suspicion: Mapping[Method, np.ndarray],
    example_ids: Sequence[str],
    truth: pd.DataFrame | None,
    bootstrap: Bootstrap,
) -> list[Measure] | NotMeasured:
    """Compare how suspicious each example is with whether its label is known to be wrong.

    Args:
        suspicion: by method ``[examples]``, such as self-influence: more is more suspicious.
        example_ids: of its entries.
        truth: one row per training example: ``example_id`` and ``flipped``; None where nobody knows.

    Returns:
        ``mislabeled_auroc`` and ``mislabeled_precision`` (of the most suspicious, as many as there are wrong ones),
        with intervals over examples; or why there is nothing.

    Raises:
        DataError: lengths or ids do not agree, or a value is not finite.
    """
    for method, values in suspicion.items():
        _require_scores(values, (len(example_ids),), f"wrong labels by {method}")
    if truth is None:
        why = "nobody knows which labels are wrong; a column with the true ones is dataset.truth_column"
        return NotMeasured(name=MISLABELED, why=why)
    wrong = _rows_of(truth, example_ids)["flipped"].to_numpy(dtype=bool)
    if not wrong.any() or wrong.all():
        return NotMeasured(name=MISLABELED, why=f"{'all' if wrong.all() else 'none'} of the training labels are wrong")
    if "influence" not in suspicion:
        return NotMeasured(name=MISLABELED, why="scores.self_influence is off, so self-influence was not computed")
    auroc = {m: bootstrap.statistic(auroc_statistic(wrong, values), len(wrong)) for m, values in suspicion.items()}
    k = int(wrong.sum())
    suspects = {method: wrong[np.argsort(-values, kind="stable")[:k]] for method, values in suspicion.items()}
    return [
        Measure(
            name="mislabeled_auroc",
            title="Wrong labels found by self-influence (AUROC)",
            explanation="The chance that an example with a wrong label is more suspicious than one with a right label; "
            f"0.5 is guessing. {_BASELINE}",
            higher_is_better=True,
            methods=auroc,
        ),
        Measure(
            name="mislabeled_precision",
            title=f"Wrong labels among the {k} most suspicious",
            explanation=f"Share of wrong labels among the {k} most suspicious examples; there are {k} wrong ones in "
            f"{len(wrong)}. {_BASELINE}",
            higher_is_better=True,
            methods={method: bootstrap.mean(hits.astype(float)) for method, hits in suspects.items()},
        ),
    ]


def auroc_statistic(positive: np.ndarray, scores: np.ndarray) -> Statistic:
    """Area under the ROC curve as a function of weights; a resample without one of the classes counts 0.5.

    The share of weighted pairs of a positive and a negative item in which the positive one has the higher score, ties
    counting half (Mann-Whitney); all resamples at once, since scikit-learn takes 3 ms for each.

    Args:
        positive: ``[items]`` bool.
        scores: ``[items]``, of which more is more positive.
    """
    order = np.argsort(scores)
    ties = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where a new score begins

    def statistic(weights: np.ndarray) -> np.ndarray:
        right, wrong = (
            np.add.reduceat(np.where(positive == kind, weights, 0)[:, order], ties, axis=1) for kind in (True, False)
        )
        won = (right * (wrong.cumsum(axis=1) - wrong / 2)).sum(axis=1)
        pairs = right.sum(axis=1) * wrong.sum(axis=1)
        share = np.full(len(weights), 0.5)
        np.divide(won, pairs, out=share, where=pairs > 0)
        return share

    return statistic


def _rows_of(truth: pd.DataFrame, example_ids: Sequence[str]) -> pd.DataFrame:
    """The truth of the examples, in their order.

    Raises:
        DataError: it does not know one of them.
    """
    rows = truth.set_index("example_id")
    strange = [example_id for example_id in example_ids if example_id not in rows.index]
    if strange:
        raise DataError(f"the truth knows no example {strange[0]!r}; scores and truth are of different training data")
    return rows.loc[list(example_ids)]


def _require_scores(scores: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    """Refuse scores that do not belong here.

    Raises:
        DataError: another shape than expected, or a value that is no finite number.
    """
    if scores.shape != shape:
        raise DataError(
            f"{what}: scores are {scores.shape}, expected {shape}", hint="score these examples and queries again"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{what}: a score is not finite", hint="fit the factors again and look for NaN")
