"""Influence scores of training examples on queries, and of every training example on itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kronfluence.arguments import ScoreArguments
from transformers import PreTrainedModel

from whence.config import Config
from whence.data.batching import Batches, plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError, FactorError
from whence.influence import memory
from whence.influence.factors import require_matching_model
from whence.influence.fingerprints import fingerprint
from whence.influence.info import FactorsInfo, load_factors_info
from whence.influence.partitions import Partitions
from whence.influence.plan import count_partitions, logit_tokens
from whence.influence.scoring import PairwiseScoring, SelfScoring

WAY_OUT = "set scores.query_gradient_low_rank, or lower scores.train_batch_size and scores.query_batch_size"


def pairwise_scores(
    model: PreTrainedModel,
    factors: Path,
    queries: TokenizedExamples,
    train: TokenizedExamples,
    config: Config,
    pad_token_id: int,
    scratch: Path,
    *,
    tokenizer_fingerprint: str | None = None,
) -> torch.Tensor:
    r"""Score every training example on every query, ``[queries, examples]`` fp32, both in dataset order.

    The score is :math:`\nabla L(q)^T (F + \delta)^{-1} \nabla L(z)`. Why positive means helpful: the weights
    :math:`\theta` minimise the summed training loss; giving example z a little more weight :math:`\epsilon` moves them
    by :math:`d\theta/d\epsilon = -H^{-1} \nabla L(z)` (implicit function theorem; Koh & Liang 2017, arXiv:1703.04730),
    and so the query's loss by :math:`dL(q)/d\epsilon = -\nabla L(q)^T H^{-1} \nabla L(z)`, minus the score. More weight
    on an example of positive score lowers the query's loss. There is no division by the number of examples: leaving z
    out of N raises the loss by about score / N.

    Args:
        model: the model the factors were fitted on; unchanged afterwards.
        factors: folder written by :func:`whence.influence.factors.fit_factors`.
        queries: tokenized queries; their loss over the same mask is the measurement.
        train: tokenized training examples.
        config: ``scores``, ``factors`` and ``general`` are read; ``scores.damping_factor`` null means
            :math:`\delta` = 0.1 x the module's mean eigenvalue, kronfluence's heuristic.
        pad_token_id: fills short examples.
        scratch: folder for finished parts; the same call goes on from those it finds there.
        tokenizer_fingerprint: compared with the one in ``factors.json``.

    Raises:
        DataError: there are no queries or no training examples.
        FactorError: the factors are unfinished, damaged or belong to another model; or a score is NaN or Inf.
        ResourceError: too little memory, before anything is computed.
    """
    scoring = open_pairwise(
        model, factors, queries, train, config, pad_token_id, scratch, tokenizer_fingerprint=tokenizer_fingerprint
    )
    scoring.compute()
    scores = require_finite(scoring.joined())
    scoring.parts.clear()
    return scores


def self_influence(
    model: PreTrainedModel,
    factors: Path,
    train: TokenizedExamples,
    config: Config,
    pad_token_id: int,
    scratch: Path,
    *,
    tokenizer_fingerprint: str | None = None,
) -> torch.Tensor:
    """The score of every training example on itself, ``[examples]`` fp32 in dataset order.

    It is never negative. It is large where the model had to bend for one example, as for a wrong label. Arguments and
    errors as for :func:`pairwise_scores`; the gradient is always of full rank.
    """
    scoring = open_self(
        model, factors, train, config, pad_token_id, scratch, tokenizer_fingerprint=tokenizer_fingerprint
    )
    scoring.compute()
    scores = require_finite(scoring.joined())
    scoring.parts.clear()
    return scores


def open_pairwise(
    model: PreTrainedModel,
    factors: Path,
    queries: TokenizedExamples,
    train: TokenizedExamples,
    config: Config,
    pad_token_id: int,
    scratch: Path,
    *,
    tokenizer_fingerprint: str | None = None,
    sources: Sequence[Path] = (),
) -> PairwiseScoring:
    """The work of :func:`pairwise_scores`, to be done in shares; arguments and errors are the same.

    Args:
        sources: the ``scratch`` folders of other tasks of the same work, whose parts are used.
    """
    info = _checked(model, factors, config, tokenizer_fingerprint, train, queries)
    arguments = ScoreArguments(
        damping_factor=config.scores.damping_factor,
        query_gradient_low_rank=config.scores.query_gradient_low_rank,
    )
    batches = plan_batches(queries.lengths, config.scores.query_batch_size * config.general.max_length)
    asked = {"queries": queries.fingerprint, "query_batches": batches}
    divided = _divided(PairwiseScoring.kind, info, arguments, train, config, scratch, sources, asked)
    return PairwiseScoring(
        model, info, factors, arguments, train,
        **divided,
        pad_token_id=pad_token_id,
        seed=config.general.seed,
        at_once=partial(
            _query_batches_at_once, model, info, config, queries, batches, train, divided["batches"]
        ),
        queries=queries,
        query_batches=batches,
    )  # fmt: skip


def open_self(
    model: PreTrainedModel,
    factors: Path,
    train: TokenizedExamples,
    config: Config,
    pad_token_id: int,
    scratch: Path,
    *,
    tokenizer_fingerprint: str | None = None,
    sources: Sequence[Path] = (),
) -> SelfScoring:
    """The work of :func:`self_influence`, to be done in shares, as :func:`open_pairwise`."""
    info = _checked(model, factors, config, tokenizer_fingerprint, train)
    arguments = ScoreArguments(damping_factor=config.scores.damping_factor)
    divided = _divided(SelfScoring.kind, info, arguments, train, config, scratch, sources, {})
    return SelfScoring(
        model, info, factors, arguments, train,
        **divided,
        pad_token_id=pad_token_id,
        seed=config.general.seed,
        at_once=partial(_require_self_memory, model, info, config, train, divided["batches"]),
    )  # fmt: skip


def _checked(
    model: PreTrainedModel,
    factors: Path,
    config: Config,
    tokenizer_fingerprint: str | None,
    *examples: TokenizedExamples,
) -> FactorsInfo:
    info = load_factors_info(factors)
    require_matching_model(info, model, config, tokenizer_fingerprint)
    if not all(len(some) for some in examples):
        raise DataError("there is nothing to score: no training examples, or no queries; check dataset and prompts")
    return info


def _divided(
    kind: str,
    info: FactorsInfo,
    arguments: ScoreArguments,
    train: TokenizedExamples,
    config: Config,
    scratch: Path,
    sources: Sequence[Path],
    asked: dict[str, Any],
) -> dict[str, Any]:
    """How the training set is divided, and the parts of just this work."""
    batch_tokens = _train_tokens(config)
    batches = plan_batches(train.lengths, batch_tokens)
    partitions = count_partitions(len(batches), config.scores.data_partitions, config.general.parallel_tasks)
    decided_by = asked | {
        "factors": info.fingerprint,
        "arguments": arguments.to_dict(),
        "train": train.fingerprint,
        "batches": batches,
        "partitions": partitions,
        "seed": config.general.seed,
    }
    parts = Partitions(scratch / kind, fingerprint(decided_by), [folder / kind for folder in sources])
    return {"batches": batches, "batch_tokens": batch_tokens, "data_partitions": partitions, "parts": parts}


def _train_tokens(config: Config) -> int:
    return config.scores.train_batch_size * config.general.max_length


def _query_batches_at_once(
    model: PreTrainedModel,
    info: FactorsInfo,
    config: Config,
    queries: TokenizedExamples,
    query_batches: Batches,
    train: TokenizedExamples,
    train_batches: Batches,
) -> int:
    """How many query batches' gradients fit into memory together.

    Raises:
        ResourceError: not even those of one.
    """
    room = memory.available_memory(model.device) + memory.weight_bytes(model)
    tokens = max(config.scores.query_batch_size * config.general.max_length, _train_tokens(config))
    counts = sorted((len(batch) for batch in query_batches), reverse=True)
    logits = [
        logit_tokens(model, info.shapes, examples, batches)
        for examples, batches in ((queries, query_batches), (train, train_batches))
    ]
    of_logits = None if None in logits else max(filter(None, logits), default=0)
    rank = config.scores.query_gradient_low_rank

    def phase(steps: int) -> memory.Phase:
        return memory.score_phase(model, info.shapes, tokens, sum(counts[:steps]), rank, counts[0], of_logits)

    steps = config.scores.query_gradient_accumulation_steps
    if steps is None:
        steps = next((number for number in range(len(counts), 1, -1) if phase(number).total <= room), 1)
    steps = min(steps, len(counts))
    memory.require_memory([phase(steps)], room, WAY_OUT)
    return steps


def _require_self_memory(
    model: PreTrainedModel, info: FactorsInfo, config: Config, train: TokenizedExamples, batches: Batches
) -> int:
    room = memory.available_memory(model.device) + memory.weight_bytes(model)
    logits = logit_tokens(model, info.shapes, train, batches)
    phase = memory.self_score_phase(model, info.shapes, info.strategy, _train_tokens(config), logits)
    memory.require_memory([phase], room, WAY_OUT)
    return 1  # the batch is its own query


def require_finite(scores: torch.Tensor) -> torch.Tensor:
    """The scores themselves.

    Raises:
        FactorError: one of them is NaN or Inf, naming the first.
    """
    wrong = (~scores.isfinite()).nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        where = f"query {place[0]} and example {place[1]}" if len(place) == 2 else f"example {place[0]}"
        raise FactorError(
            f"{len(wrong)} scores are NaN or Inf, the first that of {where}; score in float32 (general.dtype), "
            "or raise scores.damping_factor"
        )
    return scores
