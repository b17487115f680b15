"""Influence scores of training examples on queries, and of every training example on itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from safetensors.torch import save_file

from whence.data.dataset import numbers
from whence.data.tokenization import TokenizedExamples
from whence.errors import FactorError
from whence.files import write_json
from whence.influence.collectors import CODES, COSINES, NORMS, OWN, SKETCHES
from whence.influence.collectors import SCORES as PAIRS
from whence.influence.detail import divide_scores, module_table, token_table, turn_table
from whence.influence.factors import WORK, versions
from whence.influence.index import ROWS, Index, IndexInfo, write_codes
from whence.influence.plan import share
from whence.influence.ranking import influence_table
from whence.influence.results import (
    BASELINES,
    EMBEDDING,
    GRADIENT_COSINE,
    INFLUENCES,
    MATRIX,
    MODULES,
    QUERIES,
    QUERY_SKETCHES,
    SCORES,
    SCORES_INFO,
    SELF_INFLUENCE,
    TOKENS,
    TURNS,
    Scores,
)
from whence.influence.scoring import Scoring
from whence.influence.sketch import Sketch
from whence.models.trained import TrainedModel
from whence.processes import ALONE, Team

TOKENS_SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "example_id": pa.string(),
        "pieces": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
    }
)


def pairwise_scores(trained: TrainedModel, factors: Path, queries: TokenizedExamples, scratch: Path) -> torch.Tensor:
    r"""Score every training example on every query, ``[queries, examples]`` fp32, both in dataset order.

    The score is :math:`\nabla L(q)^T (F + \delta)^{-1} \nabla L(z)`. Why positive means helpful: the weights
    :math:`\theta` minimise the summed training loss; giving example z a little more weight :math:`\epsilon` moves them
    by :math:`d\theta/d\epsilon = -H^{-1} \nabla L(z)` (implicit function theorem; Koh & Liang 2017, arXiv:1703.04730),
    and so the query's loss by :math:`dL(q)/d\epsilon = -\nabla L(q)^T H^{-1} \nabla L(z)`, minus the score. More weight
    on an example of positive score lowers the query's loss. There is no division by the number of examples: leaving z
    out of N raises the loss by about score / N.

    Args:
        trained: the model the factors were fitted on, unchanged afterwards, with the training examples to score; of its
            settings ``scores``, ``factors`` and ``general`` are read. ``scores.damping_factor`` null means
            :math:`\delta` = 0.1 x the module's mean eigenvalue, kronfluence's heuristic.
        factors: folder written by :func:`whence.influence.factors.fit_factors`.
        queries: tokenized queries; their loss over the same mask is the measurement.
        scratch: folder for finished parts; the same call goes on from those it finds there.

    Raises:
        DataError: there are no queries or no training examples.
        FactorError: the factors are unfinished, damaged or belong to another model; or a score is NaN or Inf.
        ResourceError: too little memory, before anything is computed.
    """
    return _finished(Scoring(trained, factors, scratch, queries=queries), PAIRS)


def self_influence(trained: TrainedModel, factors: Path, scratch: Path) -> torch.Tensor:
    """The score of every training example on itself, ``[examples]`` fp32 in dataset order.

    It is never negative. It is large where the model had to bend for one example, as for a wrong label. Arguments and
    errors as for :func:`pairwise_scores`; the gradient is always of full rank.
    """
    return _finished(Scoring(trained, factors, scratch, own=True), OWN)


def score(
    trained: TrainedModel,
    factors: str | Path,
    queries: pd.DataFrame,
    output: str | Path,
    sources: Sequence[Path] = (),
    team: Team = ALONE,
) -> Scores:
    """Score the training examples on queries and, by the settings, on themselves; list and divide the strongest.

    Args:
        trained: the model the factors were fitted on, and its training examples with their text.
        factors: folder written by :func:`whence.influence.factors.fit_factors`.
        queries: a row per query: ``prompt`` and ``completion`` (the answer to be explained), and ``query_id`` where
            there is one (else the row's number). A model's own answer also has ``prompt_token_ids, token_ids`` as
            :func:`whence.evaluation.generation.generate` gives them: the score then is that of exactly these tokens.
        output: folder to write to; what was interrupted goes on from the parts it finds there.
        sources: folders in which other tasks have done :func:`score_part` of the same work.
        team: processes that share the parts of the data; what the others load must be equal to ``trained``.

    Raises:
        DataError: there are no queries, or an answer does not fit within ``general.max_length``.
        FactorError: the factors belong to another model or are damaged, or a score is NaN or Inf.
        ResourceError: too little memory, before anything is computed.
        ProcessError: a process of the team was killed.
    """
    factors, output = Path(factors), Path(output)
    queries = queries.assign(query_id=queries["query_id"] if "query_id" in queries else numbers(len(queries)))
    scoring = _scoring(trained, factors, queries, output / WORK, sources)
    _shared(team, scoring, range(scoring.data_partitions), factors, queries, output / WORK, sources)
    scores = _write(output, trained, queries, scoring)
    shutil.rmtree(output / WORK, ignore_errors=True)
    return scores


def score_part(
    trained: TrainedModel, factors: Path, queries: pd.DataFrame, output: Path, task: int, team: Team = ALONE
) -> int:
    """The part of :func:`score` that falls to one of ``general.parallel_tasks``.

    Args:
        output: receives the parts, for the ``sources`` of :func:`score`.
        task: the task's number, from 0.
        team: as for :func:`score`.

    Returns:
        How many parts of the training set it was.
    """
    output.mkdir(parents=True, exist_ok=True)
    scoring = _scoring(trained, factors, queries, output)
    parts = share(scoring.data_partitions, task, trained.config.general.parallel_tasks or 1)
    _shared(team, scoring, parts, factors, queries, output, ())
    return len(parts)


def _shared(team: Team, scoring: Scoring, parts: Sequence[int], *made_of: Any) -> None:
    """Do ``parts`` of a scoring in the processes of a team; ``made_of`` are the arguments of :func:`_scoring`."""
    team.share([part for part in parts if not scoring.done(part)], scoring.compute, _score_parts, *made_of)


def _score_parts(trained: TrainedModel, *arguments: Any) -> None:
    *made_of, parts = arguments
    _scoring(trained, *made_of).compute(parts)


def _scoring(
    trained: TrainedModel, factors: Path, queries: pd.DataFrame, scratch: Path, sources: Sequence[Path] = ()
) -> Scoring:
    config = trained.config
    return Scoring(
        trained,
        factors,
        scratch,
        sources,
        queries=trained.tokenize(queries),
        own=config.scores.self_influence,
        sketch=Sketch.of(config) if config.index.enabled else None,
        baselines=config.scores.baselines,
    )


def _write(folder: Path, trained: TrainedModel, queries: pd.DataFrame, scoring: Scoring) -> Scores:
    folder.mkdir(parents=True, exist_ok=True)
    settings, frame = trained.config.scores, trained.frame
    matrix = require_finite(scoring.joined())
    save_file({MATRIX: matrix.contiguous()}, folder / SCORES)
    queries.to_parquet(folder / QUERIES, index=False)
    listed = influence_table(matrix.numpy(), queries, frame, settings.top_k)
    listed.to_parquet(folder / INFLUENCES, index=False)
    if settings.detail:
        _write_detail(folder, trained, queries, scoring, listed)
    if settings.self_influence:
        own, norms = (require_finite(scoring.joined(name)).numpy() for name in (OWN, NORMS))
        columns = {"example_id": frame["example_id"], "self_influence": own, "gradient_norm": norms}
        own_scores = pd.DataFrame(columns)
        own_scores.to_parquet(folder / SELF_INFLUENCE, index=False)
    if scoring.sketch is not None:
        _write_codes(folder, trained, scoring)
        save_file({MATRIX: scoring.of_queries(SKETCHES)}, folder / QUERY_SKETCHES)
    if scoring.baselines:
        found = {GRADIENT_COSINE: scoring.gradient_cosines(), EMBEDDING: scoring.joined(COSINES)}
        save_file({name: require_finite(values).contiguous() for name, values in found.items()}, folder / BASELINES)
    origin = {
        "factors": scoring.info.fingerprint,
        "model": scoring.info.model,
        "tokenizer": trained.tokenizer_fingerprint,
        "train_data": trained.text.info.fingerprint,
        "coverage": scoring.info.coverage.model_dump(),
        "loss_on": trained.config.dataset.loss_on,
        "arguments": settings.model_dump(mode="json"),
        "versions": versions(),
    }
    write_json(folder / SCORES_INFO, origin)
    return Scores(folder)


def _write_detail(
    folder: Path, trained: TrainedModel, queries: pd.DataFrame, scoring: Scoring, listed: pd.DataFrame
) -> None:
    """Write where the ``listed`` scores come from: turns and tokens of the example, and modules of the model."""
    rows = pd.Index(queries["query_id"]).get_indexer(listed["query_id"]).tolist()
    columns = pd.Index(trained.frame["example_id"]).get_indexer(listed["example_id"]).tolist()
    detail = divide_scores(scoring, list(zip(rows, columns, strict=True)))
    texts = trained.texts(set(columns))
    tokens = token_table(listed, [texts[column] for column in columns], detail)
    tokens.to_parquet(folder / TOKENS, index=False, schema=TOKENS_SCHEMA)
    module_table(listed, detail).to_parquet(folder / MODULES, index=False)
    turn_table(listed, detail).to_parquet(folder / TURNS, index=False)


def make_index(trained: TrainedModel, factors: str | Path, output: str | Path) -> Index:
    """Make the index of the training examples alone, where none of their scores are wanted yet.

    Args:
        trained: the model the factors were fitted on, and its training examples with their text.
        factors: folder written by :func:`whence.influence.factors.fit_factors`.
        output: folder to write to; what was interrupted goes on from the parts it finds there.

    Raises:
        FactorError: the factors belong to another model or are damaged.
        ResourceError: too little memory, before anything is computed.
    """
    output = Path(output)
    scoring = Scoring(trained, Path(factors), output / WORK, sketch=Sketch.of(trained.config))
    scoring.compute()
    trained.text.write(output / ROWS)
    _write_codes(output, trained, scoring)
    shutil.rmtree(output / WORK, ignore_errors=True)
    return Index.read(output)


def _write_codes(folder: Path, trained: TrainedModel, scoring: Scoring) -> None:
    info = IndexInfo.of(trained, scoring.info.fingerprint, trained.text)
    own = require_finite(scoring.joined(OWN))
    write_codes(folder, info, scoring.joined(CODES).numpy(), own.numpy())


def _finished(scoring: Scoring, name: str) -> torch.Tensor:
    scoring.compute()
    scores = require_finite(scoring.joined(name))
    scoring.parts.clear()
    return scores


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
            f"{len(wrong)} scores are NaN or Inf, the first that of {where}",
            hint="score in float32 (general.dtype), or raise scores.damping_factor",
        )
    return scores
