"""Baselines that look into the model: cosine of plain gradients, and of the model's own embeddings.

(The baseline of plain word overlap, which needs no model, is :mod:`whence.validation.bm25`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from whence.data.batching import plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores, self_influence
from whence.models.trained import TrainedModel
from whence.progress import progress


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
        return np.asarray(np.divide(self.products, norms, out=np.zeros_like(self.products), where=norms > 0))


def plain_gradients(
    trained: TrainedModel, queries: TokenizedExamples, scratch: Path, train_norms: np.ndarray | None = None
) -> Gradients:
    """Gradients of the tracked modules, met as in influence but without factors (kronfluence's ``identity``):
    influence without the curvature that EKFAC brings in.

    Args:
        scratch: folder for finished parts, from which the same call goes on.
        train_norms: of the training examples, where a pass has taken them already.
    """
    config = trained.config
    factors = config.factors.model_copy(update={"strategy": "identity"})
    scores = config.scores.model_copy(update={"damping_factor": None})
    plain = trained.with_config(config.model_copy(update={"factors": factors, "scores": scores}))
    identity = scratch / "identity"
    fit_factors(plain, identity)
    products = pairwise_scores(plain, identity, queries, scratch / "products")
    of_queries = self_influence(plain.with_examples(queries), identity, scratch / "query_norms")
    if train_norms is None:
        train_norms = self_influence(plain, identity, scratch / "train_norms").numpy()
    return Gradients(*(np.asarray(values, np.float64) for values in (products, of_queries, train_norms)))


def embedding_scores(
    model: PreTrainedModel, queries: TokenizedExamples, train: TokenizedExamples, max_tokens: int
) -> np.ndarray:
    """Cosine between queries and training examples, ``[queries, examples]`` float64.

    Args:
        max_tokens: of a padded batch.
    """
    query_vectors, example_vectors = (_embed(model, examples, max_tokens) for examples in (queries, train))
    return np.asarray(query_vectors @ example_vectors.T)


@torch.inference_mode()
def _embed(model: PreTrainedModel, examples: TokenizedExamples, max_tokens: int) -> np.ndarray:
    """Unit vectors of the examples, ``[examples, width]``."""
    model.eval()
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    rows: list[np.ndarray | None] = [None] * len(examples)
    with progress(total=len(examples), desc="embeddings", unit="example") as bar:
        for batch in plan_batches(examples.lengths, max_tokens):
            inputs = examples.batch(batch)
            mask = inputs["attention_mask"].to(model.device)
            states = decoder(input_ids=inputs["input_ids"].to(model.device), attention_mask=mask).last_hidden_state
            means = (states.float() * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
            for index, row in zip(batch, torch.nn.functional.normalize(means.double()).cpu().numpy(), strict=True):
                rows[index] = row
            bar.update(len(batch))
    return np.stack([row for row in rows if row is not None])
