"""Stability: are the scores the same when what should not matter is changed?

Factors are fitted again from another seed (other labels are sampled for the Fisher) and on each half of the analysis
samples; what such factors disagree about is no property of the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from whence.config import Config
from whence.data.tokenization import TokenizedExamples
from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores
from whence.validation.estimates import Bootstrap
from whence.validation.evidence import Measure

SEEDS, HALVES = "stability_seeds", "stability_halves"


def scores_of_refits(
    model: PreTrainedModel,
    queries: TokenizedExamples,
    train: TokenizedExamples,
    config: Config,
    pad_token_id: int,
    scratch: Path,
) -> dict[str, np.ndarray]:
    """Scores ``[queries, examples]`` with factors of another ``seed``, and of the ``first`` and ``second`` half.

    Args:
        scratch: folder for finished parts, from which the same call goes on.
    """
    samples = train.subset(range(min(len(train), config.factors.num_samples or len(train))))
    reseeded = config.model_copy(
        update={"general": config.general.model_copy(update={"seed": config.general.seed + 1})}
    )
    fits = {
        "seed": (samples, reseeded),
        "first": (samples.subset(range(0, len(samples), 2)), config),
        "second": (samples.subset(range(1, len(samples), 2)), config),
    }
    scores = {}
    for name, (examples, settings) in fits.items():
        factors = scratch / name
        fit_factors(model, examples, settings, factors, pad_token_id)
        matrix = pairwise_scores(model, factors, queries, train, config, pad_token_id, scratch / f"scores-{name}")
        scores[name] = matrix.double().numpy()
    return scores


def rank_agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of two score matrices, query by query, ``[queries]``; 0 where one does not vary."""
    from scipy.stats import spearmanr

    agreement = np.zeros(len(first))
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            agreement[row] = spearmanr(one, other).statistic
    return agreement


def stability_measures(scores: np.ndarray, refits: dict[str, np.ndarray], bootstrap: Bootstrap) -> list[Measure]:
    """Rank agreement between the run's scores and those of another seed, and between those of both halves."""
    pairs = {
        SEEDS: ("two factor seeds", scores, refits["seed"]),
        HALVES: ("both halves of the analysis samples", refits["first"], refits["second"]),
    }
    return [
        Measure(
            name=name,
            title=f"Rank agreement across {what}",
            explanation=f"Spearman's correlation of a query's scores with factors of {what}; 1 is the same ranking.",
            higher_is_better=True,
            methods={"influence": bootstrap.mean(rank_agreement(one, other))},
        )
        for name, (what, one, other) in pairs.items()
    ]
