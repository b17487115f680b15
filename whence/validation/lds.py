"""The linear datamodeling score: do the scores predict what models trained on random subsets make of the queries?

Park et al., "TRAK: Attributing Model Behavior at Scale", 2023, arXiv:2303.14186, definition 2.3. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whence.errors import DataError
from whence.estimates import Bootstrap, rank_correlation
from whence.validation.evidence import Measure, Method

NAME = "lds"


def random_subsets(examples: int, share: float, count: int, seed: int) -> list[tuple[int, ...]]:
    """``count`` random subsets of ``share`` of the examples, each in ascending order.

    A subset hangs on its number and the seed alone, so that asking for more keeps those there are.
    """
    size = max(1, round(share * examples))
    return [
        tuple(np.sort(np.random.default_rng((seed, number)).choice(examples, size, replace=False)).tolist())
        for number in range(count)
    ]


def linear_datamodeling_scores(scores: np.ndarray, subsets: list[tuple[int, ...]], outcomes: np.ndarray) -> np.ndarray:
    """Spearman's correlation of predicted and actual outcomes over the subsets, ``[queries]``.

    The prediction for a subset is the sum of its examples' scores. A score is positive where the example lowers the
    query's loss, and an outcome is a log-probability, so what is good is a positive correlation. Where either does not
    vary there is nothing to correlate: 0.

    Args:
        scores: ``[queries, examples]``.
        subsets: indices of the examples trained on.
        outcomes: log-probability of the queries' answers, ``[subsets, queries]``.

    Raises:
        DataError: fewer than three subsets, or as many outcomes as subsets are not there.
    """
    if len(subsets) < 3 or outcomes.shape != (len(subsets), len(scores)):
        raise DataError(
            "the linear datamodeling score takes three subsets or more and an outcome of each: there are "
            f"{len(subsets)} subsets and outcomes {outcomes.shape}",
            hint="raise validation.lds_subsets",
        )
    predicted = np.stack([scores[:, list(subset)].sum(axis=1) for subset in subsets])
    return rank_correlation(predicted.T, outcomes.T)


def lds_measure(
    scores: Mapping[Method, np.ndarray],
    subsets: list[tuple[int, ...]],
    outcomes: np.ndarray,
    share: float,
    bootstrap: Bootstrap,
) -> Measure:
    """The mean linear datamodeling score of each method, with intervals over queries."""
    values = {method: linear_datamodeling_scores(matrix, subsets, outcomes) for method, matrix in scores.items()}
    return Measure(
        name=NAME,
        title=f"Linear datamodeling score over {len(subsets)} subsets of {share:.0%}",
        explanation="Spearman's correlation between the summed scores of a random subset of the training examples and "
        "what a model trained on it makes of the query (Park et al., 2023); 1 is perfect, 0 is guessing.",
        higher_is_better=True,
        methods=bootstrap.means(values),
    )
