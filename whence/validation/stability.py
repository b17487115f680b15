"""Stability: are the scores the same when what should not matter is changed?

Factors are fitted again from another seed (other labels are sampled for the Fisher) and on each half of the analysis
samples; what such factors disagree about is no property of the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from whence.data.tokenization import TokenizedExamples
from whence.estimates import Bootstrap, rank_correlation
from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores
from whence.models.trained import TrainedModel
from whence.validation.evidence import Measure

SEEDS, HALVES = "stability_seeds", "stability_halves"


def scores_of_refits(trained: TrainedModel, queries: TokenizedExamples, scratch: Path) -> dict[str, np.ndarray]:
    """Scores ``[queries, examples]`` with factors of another ``seed``, and of the ``first`` and ``second`` half.

    Args:
        scratch: folder for finished parts, from which the same call goes on.
    """
    config, examples = trained.config, trained.examples
    samples = examples.subset(range(min(len(examples), config.factors.num_samples or len(examples))))
    reseeded = config.model_copy(
        update={"general": config.general.model_copy(update={"seed": config.general.seed + 1})}
    )
    fits = {
        "seed": trained.with_config(reseeded).with_examples(samples),
        "first": trained.with_examples(samples.subset(range(0, len(samples), 2))),
        "second": trained.with_examples(samples.subset(range(1, len(samples), 2))),
    }
    scores = {}
    for name, refit in fits.items():
        fit_factors(refit, scratch / name)
        matrix = pairwise_scores(trained, scratch / name, queries, scratch / f"scores-{name}")
        scores[name] = matrix.double().numpy()
    return scores


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
            methods={"influence": bootstrap.mean(rank_correlation(one, other))},
        )
        for name, (what, one, other) in pairs.items()
    ]
