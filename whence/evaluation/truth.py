"""How well attribution finds what is known to be there: planted examples and flipped labels. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from whence.errors import DataError

RECALL_AT = 10


def planted_truth_metrics(
    scores: np.ndarray,
    planted: Sequence[str | None],
    example_ids: Sequence[str],
    truth: pd.DataFrame,
    self_influence: np.ndarray | None = None,
) -> dict[str, float]:
    """Compare the full ranking of the training examples with the truth of the demo corpus.

    Args:
        scores: ``[queries, examples]``, positive is helpful.
        planted: id of the fact each query asks for; None or empty for other queries, which are left out.
        example_ids: of the columns of ``scores``.
        truth: one row per training example: ``example_id``, ``planted`` (fact id or empty), ``flipped``.
        self_influence: ``[examples]``, in the order of ``example_ids``.

    Returns:
        ``planted_queries``; ``planted_top1_hits``: queries whose top-ranked example is one planted for them;
        ``planted_top1_share``; ``planted_recall_at_10``: mean share of a query's planted examples among its first ten
        (of at most ten); and, where self-influence is given and some labels are flipped, ``flipped_auroc``: the chance
        that a flipped example has more self-influence than another. Figures without a case are left out, and queries
        about facts that no training example has are only counted: ``planted_queries_without_examples``.

    Raises:
        DataError: shapes or ids do not agree, or a score is not finite.
    """
    rows = truth.set_index("example_id")
    strange = [example_id for example_id in example_ids if example_id not in rows.index]
    if strange:
        raise DataError(f"the truth knows no example {strange[0]!r}; scores and truth are of different training data")
    if scores.shape != (len(planted), len(example_ids)):
        raise DataError(f"scores are {scores.shape}, expected {len(planted)} queries x {len(example_ids)} examples")
    if not np.isfinite(scores).all() or (self_influence is not None and not np.isfinite(self_influence).all()):
        raise DataError("a score is not finite; fit the factors again and look for NaN")
    rows = rows.loc[list(example_ids)]
    metrics = _found(scores, planted, rows["planted"].fillna("").to_numpy())
    flipped = rows["flipped"].to_numpy(dtype=bool)
    if self_influence is not None and flipped.any() and not flipped.all():
        metrics["flipped_auroc"] = _auroc(flipped, self_influence)
    return metrics


def _auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """The chance that a positive example scores higher than another, ties counting half (Mann and Whitney, 1947)."""
    ranks = pd.Series(scores).rank().to_numpy()
    count = int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _found(scores: np.ndarray, planted: Sequence[str | None], facts: np.ndarray) -> dict[str, float]:
    hits, recalls, absent = [], [], 0
    for row, fact in enumerate(planted):
        if not fact:
            continue
        wanted = facts == fact
        if not wanted.any():  # dataset.num_samples has left them all out
            absent += 1
            continue
        top = np.argsort(-scores[row], kind="stable")[:RECALL_AT]
        hits.append(bool(wanted[top[0]]))
        recalls.append(float(wanted[top].sum() / min(wanted.sum(), RECALL_AT)))
    left_out = {"planted_queries_without_examples": float(absent)} if absent else {}
    if not hits:
        return left_out
    return left_out | {
        "planted_queries": float(len(hits)),
        "planted_top1_hits": float(sum(hits)),
        "planted_top1_share": float(np.mean(hits)),
        f"planted_recall_at_{RECALL_AT}": float(np.mean(recalls)),
    }
