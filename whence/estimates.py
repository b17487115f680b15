"""Estimates with bootstrap intervals, and rank correlation: the statistics behind every number that is judged.

The bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13, percentile method) draws how often
each item counts; a measure is therefore a function of weights ``[resamples, items]``, and since both models are
weighted alike, the interval of their difference is a paired one. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from whence.config import Config

Statistic = Callable[[np.ndarray], np.ndarray]  # weights [resamples, items] -> values [resamples]
Name = TypeVar("Name", bound=Hashable)

_CHUNK = 100  # resamples weighed at once: bounds memory at 100 x items


class Estimate(BaseModel):
    """A measured value, the bounds of its bootstrap interval, and how many items (queries, examples) it is over.

    Bounds are None where nothing was resampled; ``items`` is None where there is nothing to count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None
    items: int | None = None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile bootstrap with so many resamples, at this level, from this seed."""

    samples: int
    confidence: float
    seed: int

    @classmethod
    def of(cls, config: Config) -> Bootstrap:
        """As the settings say."""
        return cls(config.evaluation.bootstrap_samples, config.evaluation.confidence, config.general.seed)

    def mean(self, values: Sequence[float] | np.ndarray) -> Estimate:
        """The mean over items (queries, most often) and its interval."""
        return self.statistic(mean_statistic(values), len(values))

    def statistic(self, statistic: Statistic, items: int) -> Estimate:
        """Any measure of ``items`` weighted items and its interval."""
        return self.paired([statistic], items)[0][0]

    def means(self, values: Mapping[Name, np.ndarray]) -> dict[Name, Estimate]:
        """:meth:`mean` by name; all are resampled alike."""
        return {name: self.mean(of_items) for name, of_items in values.items()}

    def paired(self, statistics: Sequence[Statistic], items: int) -> tuple[list[Estimate], Estimate | None]:
        """Each statistic with its interval, and the last minus the first when there are two or more.

        Args:
            statistics: measures of different models on the same items.
            items: number of items, at least 1.
        """
        rng = np.random.default_rng(self.seed)
        once = np.ones((1, items))
        drawn: list[list[np.ndarray]] = [[] for _ in statistics]
        for start in range(0, self.samples, _CHUNK):
            size = min(_CHUNK, self.samples - start)
            weights = rng.multinomial(items, np.full(items, 1 / items), size=size).astype(np.float64)
            for values, statistic in zip(drawn, statistics, strict=True):
                values.append(statistic(weights))
        points = [float(statistic(once)[0]) for statistic in statistics]
        resampled = [np.concatenate(values) for values in drawn]
        estimates = [self._estimate(*pair, items) for pair in zip(points, resampled, strict=True)]
        if len(statistics) < 2:
            return estimates, None
        return estimates, self._estimate(points[-1] - points[0], resampled[-1] - resampled[0], items)

    def crossed_mean(self, values: np.ndarray) -> Estimate:
        """The mean of ``[queries, seeds]``, its interval over both: queries and seeds are drawn independently.

        (Owen, "The pigeonhole bootstrap", 2007: the bootstrap of crossed random effects.)
        """
        queries, seeds = values.shape
        rng = np.random.default_rng(self.seed)
        of_queries = rng.multinomial(queries, np.full(queries, 1 / queries), size=self.samples) / queries
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=self.samples) / seeds
        resampled = np.einsum("bq,qs,bs->b", of_queries, values, of_seeds)
        return self._estimate(float(values.mean()), resampled, queries)

    def _estimate(self, value: float, resampled: np.ndarray, items: int) -> Estimate:
        low, high = np.quantile(resampled, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Estimate(value=value, low=float(low), high=float(high), items=items)


def mean_statistic(values: Sequence[float] | np.ndarray) -> Statistic:
    """The mean of per-item values."""
    items = np.asarray(values, dtype=np.float64)
    return lambda weights: weights @ items / weights.sum(axis=1)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of two matrices, row by row, ``[rows]``; 0 where one does not vary."""
    from scipy.stats import spearmanr  # only where it is measured

    correlation = np.zeros(len(first))
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            correlation[row] = spearmanr(one, other).statistic
    return correlation
