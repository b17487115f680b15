"""From scores to the table a person reads: the most helpful and most harmful training examples of each query.

Needs no torch.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

HELPFUL = "helpful"
HARMFUL = "harmful"
SIGN_IN_WORDS = {
    HELPFUL: "training on it lowered this query's loss",
    HARMFUL: "training on it raised this query's loss",
}
COLUMNS = (
    "query_id",
    "direction",
    "rank",
    "example_id",
    "score",
    "z_score",
    "sign_in_words",
    "prompt",
    "completion",
    "label",
)


def influence_table(scores: np.ndarray, queries: pd.DataFrame, train: pd.DataFrame, top_k: int) -> pd.DataFrame:
    """The ``top_k`` training examples of both ends per query, strongest first.

    Only examples whose score has the sign of the list are listed, so one may be shorter than ``top_k``; of equal
    scores the earlier example comes first.

    Args:
        scores: ``[queries, examples]``, positive where the example lowers the query's loss.
        queries: one row per row of ``scores``, with ``query_id``.
        train: one row per column of ``scores``, with ``example_id, prompt, completion, label``.
        top_k: rows per query and direction.

    Returns:
        Columns :data:`COLUMNS`; ``z_score`` is over the training set, per query.
    """
    values = scores.astype(np.float64)
    if values.shape != (len(queries), len(train)):
        raise ValueError(f"scores are {values.shape}, but there are {len(queries)} queries and {len(train)} examples")
    standard = z_scores(values)
    tables = [
        _one_end(query_id, direction, values[row], standard[row], train, top_k)
        for row, query_id in enumerate(queries["query_id"])
        for direction in (HELPFUL, HARMFUL)
    ]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """The columns of the ``k`` highest scores of each row, best first: ``[rows, k]``; of equal ones the earlier."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def z_scores(values: np.ndarray) -> np.ndarray:
    """Each row's distance from its mean in standard deviations; 0 throughout where a row is constant."""
    deviation = values.std(axis=1, keepdims=True)
    centred = values - values.mean(axis=1, keepdims=True)
    return np.asarray(np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0))


def _one_end(
    query_id: str, direction: str, scores: np.ndarray, standard: np.ndarray, train: pd.DataFrame, top_k: int
) -> pd.DataFrame:
    strength = scores if direction == HELPFUL else -scores
    order = best_first(strength, top_k)
    order = order[strength[order] > 0]
    table = train.iloc[order][["example_id", "prompt", "completion", "label"]]
    return table.assign(
        query_id=query_id,
        direction=direction,
        rank=np.arange(1, len(order) + 1),
        score=scores[order],
        z_score=standard[order],
        sign_in_words=SIGN_IN_WORDS[direction],
    )
