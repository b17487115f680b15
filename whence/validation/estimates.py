"""Estimates with bootstrap intervals, as the evidence holds them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whence.errors import DataError
from whence.evaluation.metrics import Statistic, mean_statistic, paired_intervals
from whence.validation.evidence import Estimate, Method


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile bootstrap with so many resamples, at this level, from this seed."""

    samples: int
    confidence: float
    seed: int

    def mean(self, values: Sequence[float] | np.ndarray) -> Estimate:
        """The mean over items (queries, most often) and its interval."""
        return self.statistic(mean_statistic(values), len(values))

    def statistic(self, statistic: Statistic, items: int) -> Estimate:
        """Any measure of ``items`` weighted items and its interval."""
        (interval,), _ = paired_intervals([statistic], items, self.samples, self.confidence, self.seed)
        return Estimate(value=interval.value, low=interval.low, high=interval.high, items=items)

    def means(self, values: Mapping[Method, np.ndarray]) -> dict[Method, Estimate]:
        """:meth:`mean` for each method; all are resampled alike."""
        return {method: self.mean(of_items) for method, of_items in values.items()}

    def crossed_mean(self, values: np.ndarray) -> Estimate:
        """The mean of ``[queries, seeds]``, its interval over both: queries and seeds are drawn independently.

        (Owen, "The pigeonhole bootstrap", 2007: the bootstrap of crossed random effects.)
        """
        queries, seeds = values.shape
        rng = np.random.default_rng(self.seed)
        of_queries = rng.multinomial(queries, np.full(queries, 1 / queries), size=self.samples) / queries
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=self.samples) / seeds
        resampled = np.einsum("bq,qs,bs->b", of_queries, values, of_seeds)
        low, high = np.quantile(resampled, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Estimate(value=float(values.mean()), low=float(low), high=float(high), items=queries)


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """The columns of the ``k`` highest scores of each row, best first: ``[rows, k]``; of equal ones the earlier."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def require_scores(scores: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    """Refuse scores that do not belong here.

    Raises:
        DataError: another shape than expected, or a value that is no finite number.
    """
    if scores.shape != shape:
        raise DataError(f"{what}: scores are {scores.shape}, expected {shape}; score these examples and queries again")
    if not np.isfinite(scores).all():
        raise DataError(f"{what}: a score is not finite; fit the factors again and look for NaN")
