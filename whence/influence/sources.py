"""Influence by where training examples are from: the share each source has of what helps, and of what harms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from whence.estimates import Bootstrap

SIGNS = {"positive": 1.0, "negative": -1.0}


def shares_by_query(scores: np.ndarray, sources: Sequence[str]) -> dict[str, pd.DataFrame]:
    """For each sign the share of every source (columns) in the sum of a query's scores of that sign (rows).

    A row is 0 where a query has no score of the sign.

    Args:
        scores: ``[queries, examples]``.
        sources: of the examples.
    """
    codes, names = pd.factorize(np.asarray(sources, dtype=object), sort=True)
    members = np.eye(len(names))[codes]  # [examples, sources]
    shares = {}
    for sign, factor in SIGNS.items():
        sums = np.maximum(factor * scores.astype(np.float64), 0.0) @ members
        whole = sums.sum(axis=1, keepdims=True)
        divided = np.divide(sums, whole, out=np.zeros_like(sums), where=whole > 0)
        shares[sign] = pd.DataFrame(divided, columns=[str(name) for name in names])
    return shares


def influence_by_source(scores: np.ndarray, sources: Sequence[str], bootstrap: Bootstrap) -> pd.DataFrame:
    """The mean share of each source over queries with its interval, beside its share of the examples.

    A source whose share of the influence lies above its share of the rows acts more than its size explains.

    Returns:
        ``source, rows, share_of_rows`` and, for ``positive`` and ``negative`` influence, ``<sign>_share`` with
        ``<sign>_low`` and ``<sign>_high``; the largest source first.
    """
    counts = pd.Series(list(sources), dtype=object).value_counts()
    table = pd.DataFrame({"source": counts.index.map(str), "rows": counts.to_numpy()})
    table["share_of_rows"] = table["rows"] / len(sources)
    for sign, shares in shares_by_query(scores, sources).items():
        found = [bootstrap.mean(shares[source].to_numpy()) for source in table["source"]]
        table[f"{sign}_share"] = [estimate.value for estimate in found]
        table[f"{sign}_low"] = [estimate.low for estimate in found]
        table[f"{sign}_high"] = [estimate.high for estimate in found]
    return table.sort_values(["rows", "source"], ascending=[False, True], ignore_index=True)
