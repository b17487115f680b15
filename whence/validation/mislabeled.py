"""Whether self-influence finds wrong labels: AUROC and precision, where the wrong ones are known. No torch.

A model has to bend for an example whose label contradicts all others like it, so such an example has more influence on
itself (Koh & Liang, 2017, sec. 5.4; Pruthi et al., 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from whence.evaluation.metrics import Statistic
from whence.validation.estimates import Bootstrap, require_scores
from whence.validation.evidence import Measure, Method, NotMeasured
from whence.validation.planted import rows_of

NAME = "mislabeled"
_BASELINE = "Beside influence stands the plain squared gradient norm (under gradient cosine)."


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
        require_scores(values, (len(example_ids),), f"wrong labels by {method}")
    if truth is None:
        return NotMeasured(
            name=NAME, why="nobody knows which labels are wrong; a column with the true ones is dataset.truth_column"
        )
    wrong = rows_of(truth, example_ids)["flipped"].to_numpy(dtype=bool)
    if not wrong.any() or wrong.all():
        return NotMeasured(name=NAME, why=f"{'all' if wrong.all() else 'none'} of the training labels are wrong")
    if "influence" not in suspicion:
        return NotMeasured(name=NAME, why="scores.self_influence is off, so self-influence was not computed")
    auroc = {m: bootstrap.statistic(auroc_statistic(wrong, values), len(wrong)) for m, values in suspicion.items()}
    k = int(wrong.sum())
    found = {method: wrong[np.argsort(-values, kind="stable")[:k]] for method, values in suspicion.items()}
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
            methods={method: bootstrap.mean(hits.astype(float)) for method, hits in found.items()},
        ),
    ]


def auroc_statistic(positive: np.ndarray, scores: np.ndarray) -> Statistic:
    """scikit-learn's ``roc_auc_score`` as a function of weights; a resample without one of the classes counts 0.5."""
    from sklearn.metrics import roc_auc_score  # only where it is measured

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array(
            [
                roc_auc_score(positive, scores, sample_weight=row) if 0 < row[positive].sum() < row.sum() else 0.5
                for row in weights
            ]
        )

    return statistic
