"""Measures of answers, and paired bootstrap intervals of them. Needs no torch.

The bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13, percentile method) draws how often
each item counts; a measure is therefore a function of weights ``[resamples, items]``, and since both models are
weighted alike, the interval of their difference is a paired one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # weights [resamples, items] -> values [resamples]

MAX_RANKED_LABELS = 50

_CHUNK = 100  # resamples weighed at once: bounds memory at 100 x items


@dataclass(frozen=True)
class Interval:
    """A measured value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """``value, low, high``."""
        return asdict(self)


def can_be_ranked(labels: Sequence[str]) -> bool:
    """Whether the distinct answers are few enough to be classes, not free text."""
    return 1 < len(labels) <= MAX_RANKED_LABELS


def same_text(answer: str, reference: str) -> bool:
    """Whether two answers agree but for white space."""
    return " ".join(answer.split()) == " ".join(reference.split())


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure of each answer, 0 to 1 (Lin, 2004; words lower-cased, no stemming)."""
    from rouge_score.rouge_scorer import RougeScorer  # only where answers are compared

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, answers, strict=True)
    return np.array([scorer.score(reference, answer)["rougeL"].fmeasure for reference, answer in pairs])


def chrf(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """chrF2 of each answer by sacrebleu, here from 0 to 1 (Popović, 2015: character n-grams up to 6)."""
    from sacrebleu.metrics import CHRF

    scorer = CHRF()
    pairs = zip(answers, references, strict=True)
    return np.array([scorer.sentence_score(answer, [reference]).score / 100 for answer, reference in pairs])


def mean_statistic(values: Sequence[float] | np.ndarray) -> Statistic:
    """The mean of per-item values."""
    items = np.asarray(values, dtype=np.float64)
    return lambda weights: weights @ items / weights.sum(axis=1)


def macro_f1_statistic(labels: Sequence[str], predicted: Sequence[str]) -> Statistic:
    """F1 averaged over the classes that occur among the weighted labels or predictions, as scikit-learn has it."""
    classes, codes = np.unique(np.concatenate([labels, predicted]).astype(str), return_inverse=True)
    true, guess = (np.eye(len(classes))[part] for part in np.split(codes, 2))  # [items, classes], one 1 per row
    hits = true * guess

    def statistic(weights: np.ndarray) -> np.ndarray:
        occurring = weights @ (true + guess)  # true positives count twice, false ones of both kinds once
        f1 = np.divide(2 * (weights @ hits), occurring, out=np.zeros_like(occurring), where=occurring > 0)
        return f1.sum(axis=1) / (occurring > 0).sum(axis=1)

    return statistic


def paired_intervals(
    statistics: Sequence[Statistic], items: int, samples: int, confidence: float, seed: int
) -> tuple[list[Interval], Interval | None]:
    """Each statistic with its interval, and the last minus the first when there are two or more.

    Args:
        statistics: measures of different models on the same items.
        items: number of items, at least 1.
        samples: bootstrap resamples.
        confidence: level, e.g. 0.95.
    """
    rng = np.random.default_rng(seed)
    once = np.ones((1, items))
    drawn: list[list[np.ndarray]] = [[] for _ in statistics]
    for start in range(0, samples, _CHUNK):
        size = min(_CHUNK, samples - start)
        weights = rng.multinomial(items, np.full(items, 1 / items), size=size).astype(np.float64)
        for values, statistic in zip(drawn, statistics, strict=True):
            values.append(statistic(weights))
    points = [float(statistic(once)[0]) for statistic in statistics]
    resampled = [np.concatenate(values) for values in drawn]
    intervals = [_interval(point, values, confidence) for point, values in zip(points, resampled, strict=True)]
    if len(statistics) < 2:
        return intervals, None
    return intervals, _interval(points[-1] - points[0], resampled[-1] - resampled[0], confidence)


def _interval(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
