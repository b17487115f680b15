"""What scoring leaves behind: the score matrix, where it comes from, and the tables made of it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow as pa
from safetensors.torch import save_file

from whence.influence.detail import divide_scores, module_table, token_table
from whence.influence.info import load_factors_info
from whence.influence.ranking import influence_table
from whence.influence.scores import require_finite
from whence.influence.scoring import PairwiseScoring, SelfScoring
from whence.models import tokenizer_fingerprint
from whence.running.artifacts import (
    INFLUENCES_FILE,
    MODULES_FILE,
    QUERIES_FILE,
    SCORES_FILE,
    SCORES_INFO_FILE,
    SELF_INFLUENCE_FILE,
    TOKENS_FILE,
)
from whence.running.trained import Trained
from whence.tracking import StageRun

TOKENS_SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "example_id": pa.string(),
        "pieces": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
    }
)


def write_scores(
    folder: Path,
    trained: Trained,
    factors: Path,
    queries: pd.DataFrame,
    pairwise: PairwiseScoring,
    own: SelfScoring | None,
) -> dict[str, float]:
    """Write finished scores: the matrix ``[queries, examples]``, what tells where it comes from, the tables made of it.

    Raises:
        FactorError: a part of the scores is missing or damaged, or a score is NaN or Inf.
        ResourceError: too little memory to divide the listed scores among tokens and modules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, settings = trained.data.frame, trained.settings.scores
    matrix = require_finite(pairwise.joined())
    save_file({"all_modules": matrix.contiguous()}, folder / SCORES_FILE)
    queries.to_parquet(folder / QUERIES_FILE, index=False)
    listed = influence_table(matrix, queries, train, settings.top_k)
    listed.to_parquet(folder / INFLUENCES_FILE, index=False)
    if settings.detail:
        _write_detail(folder, trained, queries, pairwise, listed)
    if own is not None:
        values = require_finite(own.joined()).numpy()
        frame = pd.DataFrame({"example_id": train["example_id"], "self_influence": values})
        frame.to_parquet(folder / SELF_INFLUENCE_FILE, index=False)
    info = load_factors_info(factors)
    origin = {
        "factors": info.fingerprint,
        "model": info.model,
        "tokenizer": tokenizer_fingerprint(trained.tokenizer),
        "train_data": trained.data.info.fingerprint,
        "loss_on": trained.settings.dataset.loss_on,
        "arguments": settings.model_dump(mode="json"),
        "versions": {package: version(package) for package in ("whence", "kronfluence", "torch", "transformers")},
    }
    (folder / SCORES_INFO_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    return {"queries": float(len(queries)), "examples": float(len(train))}


def _write_detail(
    folder: Path, trained: Trained, queries: pd.DataFrame, pairwise: PairwiseScoring, listed: pd.DataFrame
) -> None:
    """Write where the ``listed`` scores come from: tokens of the training example, and modules of the model."""
    rows = pd.Index(queries["query_id"]).get_indexer(listed["query_id"])
    columns = pd.Index(trained.data.frame["example_id"]).get_indexer(listed["example_id"])
    detail = divide_scores(pairwise, list(zip(rows.tolist(), columns.tolist(), strict=True)))
    texts = trained.texts(set(columns.tolist()))
    tokens = token_table(listed, [texts[column] for column in columns.tolist()], detail)
    tokens.to_parquet(folder / TOKENS_FILE, index=False, schema=TOKENS_SCHEMA)
    module_table(listed, detail).to_parquet(folder / MODULES_FILE, index=False)


def record_scores(folder: Path, run: StageRun) -> None:
    """Keep the scores with the run: the table to look at, and the files."""
    run.log_table(pd.read_parquet(folder / INFLUENCES_FILE), "influences.json")
    run.log_artifacts(folder, "scores")
