"""Scores of a batch of training examples on all queries at once, by the cheapest way there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from whence.influence.products import Basis, gradient_chunks

QueryGradients = torch.Tensor | list[torch.Tensor]  # [queries, outputs, inputs], or its factors by rank
Way = Literal["tokens", "examples"]
Pairs = Sequence[tuple[int, int]]  # places of a query among those held, and of a training example in the batch

PLAIN = Basis(None, None)
OVERSAMPLING = 8  # columns beyond the rank in the randomised decomposition
PIECE_BYTES = 1 << 28  # of intermediate results held at once


def query_scores(queries: QueryGradients, activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """``scores[q, b] = <P_q, G_b>`` with ``G_b = S_b^T A_b``, ``[queries, batch]``.

    Args:
        queries: preconditioned query gradients ``P`` ``[queries, outputs, inputs]``, or its two factors
            ``[queries, outputs, rank]`` and ``[queries, rank, inputs]``.
        activations: ``A`` ``[batch, tokens, inputs]``.
        gradients: ``S`` ``[batch, tokens, outputs]``.
    """
    if isinstance(queries, torch.Tensor):
        return _by_examples(queries, activations, gradients)
    left, right = queries
    batch, tokens, inputs = activations.shape
    if cheapest_way(len(left), left.shape[2], batch, tokens, left.shape[1], inputs) == "tokens":
        return _by_tokens(left, right, activations, gradients).sum(dim=2)
    size = max(1, PIECE_BYTES // (4 * left.shape[1] * inputs))
    ((_, examples),) = gradient_chunks(activations, gradients, PLAIN, chunk=batch)
    flat = examples.flatten(1)
    pieces = [(left[i : i + size] @ right[i : i + size]).flatten(1) @ flat.T for i in range(0, len(left), size)]
    return torch.cat(pieces)


def cut_to_rank(gradients: torch.Tensor, rank: int | None) -> QueryGradients:
    """Gradients ``[queries, outputs, inputs]`` by the factors of their best approximation, where that is smaller.

    The decomposition is randomised (Halko et al. 2011, arXiv:0909.4061) and draws from torch's global generator.
    """
    smaller = min(gradients.shape[1:])
    if rank is None or rank >= smaller:
        return gradients
    left, values, right = torch.svd_lowrank(gradients, q=min(rank + OVERSAMPLING, smaller))
    left = (left * values.unsqueeze(1))[:, :, :rank]
    return [left, right[:, :, :rank].transpose(1, 2)]


def token_scores(
    queries: QueryGradients, activations: torch.Tensor, gradients: torch.Tensor, pairs: Pairs
) -> torch.Tensor:
    """Scores of some pairs, divided among the tokens of the training examples: ``[pairs, tokens]``.

    As ``G_b`` is the sum of its tokens' ``s_t a_t^T``, token ``t`` gives the score ``s_t^T P_q a_t``; only pairs that
    are asked for are computed. Arguments are those of :func:`query_scores`.
    """
    scores = gradients.new_empty(len(pairs), gradients.shape[1])
    work = torch.empty_like(activations[0])  # taken once: blocks that come and go by the thousand leave holes
    for share, (query, example) in zip(scores, pairs, strict=True):
        activation, gradient = activations[example], gradients[example]
        if isinstance(queries, list):
            left, right = queries
            torch.linalg.vecdot(gradient @ left[query], activation @ right[query].T, out=share)
        else:
            torch.mm(gradient, queries[query], out=work)
            torch.sum(work.mul_(activation), dim=1, out=share)
    return scores


def cheapest_way(queries: int, rank: int, batch: int, tokens: int, outputs: int, inputs: int) -> Way:
    """Of low-rank queries, the way of fewest multiplications.

    Either every token is projected on every query's factors, or the queries are multiplied out once for the batch and
    meet whole per-example gradients.
    """
    by_tokens = batch * tokens * queries * rank * (outputs + inputs)
    by_examples = outputs * inputs * (queries * rank + batch * tokens + batch * queries)
    return "tokens" if by_tokens <= by_examples else "examples"


def _by_examples(queries: torch.Tensor, activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    scores = queries.new_empty(len(queries), len(activations))
    flat = queries.flatten(1)
    for part, examples in gradient_chunks(activations, gradients, PLAIN):
        scores[:, part] = flat @ examples.flatten(1).T.to(flat.dtype)
    return scores


def _by_tokens(
    left: torch.Tensor, right: torch.Tensor, activations: torch.Tensor, gradients: torch.Tensor
) -> torch.Tensor:
    batch, tokens, _ = activations.shape
    rank = left.shape[2]
    size = max(1, PIECE_BYTES // (8 * batch * tokens * rank))
    pieces = []
    for i in range(0, len(left), size):
        projected = torch.einsum("bti,qki->btqk", activations, right[i : i + size])
        projected *= torch.einsum("bto,qok->btqk", gradients, left[i : i + size])
        pieces.append(projected.sum(dim=3).permute(2, 0, 1))
    return torch.cat(pieces)
