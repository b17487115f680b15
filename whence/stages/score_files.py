"""What scoring leaves behind: the score matrix, where it comes from, and the tables made of it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from whence.influence.info import load_factors_info
from whence.influence.ranking import influence_table
from whence.models import tokenizer_fingerprint
from whence.stages.artifacts import INFLUENCES, QUERIES, SCORES, SCORES_INFO, SELF_INFLUENCE
from whence.stages.trained import Trained
from whence.tracking import StageRun


def write_scores(
    folder: Path, trained: Trained, factors: Path, queries: pd.DataFrame, matrix: torch.Tensor, own: torch.Tensor | None
) -> dict[str, float]:
    """Write the score matrix ``[queries, examples]``, what tells where it comes from, and the tables made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    train = trained.data.frame
    save_file({"all_modules": matrix.contiguous()}, folder / SCORES)
    queries.to_parquet(folder / QUERIES, index=False)
    influence_table(matrix, queries, train, trained.settings.scores.top_k).to_parquet(folder / INFLUENCES, index=False)
    if own is not None:
        frame = pd.DataFrame({"example_id": train["example_id"], "self_influence": own.numpy()})
        frame.to_parquet(folder / SELF_INFLUENCE, index=False)
    info = load_factors_info(factors)
    origin = {
        "factors": info.fingerprint,
        "model": info.model,
        "tokenizer": tokenizer_fingerprint(trained.tokenizer),
        "train_data": trained.data.info.fingerprint,
        "loss_on": trained.settings.dataset.loss_on,
        "arguments": trained.settings.scores.model_dump(mode="json"),
        "versions": {package: version(package) for package in ("whence", "kronfluence", "torch", "transformers")},
    }
    (folder / SCORES_INFO).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    return {"queries": float(len(queries)), "examples": float(len(train))}


def record_scores(folder: Path, run: StageRun) -> None:
    """Keep the scores with the run: the table to look at, and the files."""
    run.log_table(pd.read_parquet(folder / INFLUENCES), "influences.json")
    run.log_artifacts(folder, "scores")
