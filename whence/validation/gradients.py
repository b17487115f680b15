"""The gradient baseline: cosine of plain gradients, that is influence without the curvature that EKFAC brings in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from whence.config import Config
from whence.data.tokenization import TokenizedExamples
from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores, self_influence


@dataclass(frozen=True)
class Gradients:
    """Dot products of query and training gradients ``[queries, examples]``, and the squared norms of both."""

    products: np.ndarray
    query_norms: np.ndarray
    train_norms: np.ndarray

    @property
    def cosines(self) -> np.ndarray:
        """``[queries, examples]``; 0 where a gradient vanishes."""
        norms = np.sqrt(np.outer(self.query_norms, self.train_norms))
        return np.divide(self.products, norms, out=np.zeros_like(self.products), where=norms > 0)


def plain_gradients(
    model: PreTrainedModel,
    queries: TokenizedExamples,
    train: TokenizedExamples,
    config: Config,
    pad_token_id: int,
    scratch: Path,
) -> Gradients:
    """Gradients of the tracked modules, met as in influence but without factors (kronfluence's ``identity``).

    Args:
        scratch: folder for finished parts, from which the same call goes on.
    """
    plain = config.model_copy(
        update={
            "factors": config.factors.model_copy(update={"strategy": "identity"}),
            "scores": config.scores.model_copy(update={"damping_factor": None}),
        }
    )
    factors = scratch / "identity"
    fit_factors(model, train, plain, factors, pad_token_id)
    given = {"model": model, "factors": factors, "config": plain, "pad_token_id": pad_token_id}
    products = pairwise_scores(queries=queries, train=train, scratch=scratch / "products", **given)
    own = [
        self_influence(train=some, scratch=scratch / name, **given)
        for name, some in (("query_norms", queries), ("train_norms", train))
    ]
    return Gradients(*(values.double().numpy() for values in (products, *own)))
