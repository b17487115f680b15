"""Stage ``score``: the influence of every training example on every query, and on itself."""

from __future__ import annotations

from pathlib import Path

from whence.config_file import load_config
from whence.influence.scores import open_pairwise, open_self
from whence.stages.runner import StageResult, run_stage
from whence.stages.score_files import record_scores, write_scores
from whence.stages.trained import SCORE_SETTINGS, Trained
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(*, config: Path, model: Path, factors: Path, train_data: Path, generations: Path, scores: Path) -> StageResult:
    """Score the training examples.

    Args:
        config: the resolved configuration, with the prompts.
        model: the fine-tuned model.
        factors: its influence factors.
        train_data: the training examples.
        generations: the models' own answers, used as queries when ``scores.use_generated`` says so.
        scores: receives ``scores.safetensors`` (queries x examples), ``queries.parquet`` (its rows),
            ``influences.parquet`` (the top of both ends per query), ``tokens.parquet`` and ``modules.parquet`` (where
            their scores come from), ``self_influence.parquet``, and ``scores.json`` (what they were computed from).
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        trained = Trained.load(config, model, train_data)
        frame, queries = trained.queries(generations)
        given = trained.scoring(factors) | {"scratch": work.scratch}
        pairwise = open_pairwise(queries=queries, **given)
        own = open_self(**given) if settings.scores.self_influence else None
        pairwise.compute()
        if own is not None:
            own.compute()
        return write_scores(work.outputs["scores"], trained, factors, frame, pairwise, own)

    def record(work: Workspace, run: StageRun) -> None:
        record_scores(work.outputs["scores"], run)

    return run_stage(
        "score",
        settings,
        inputs={"model": model, "factors": factors, "train_data": train_data, "generations": generations},
        outputs={"scores": scores},
        settings=SCORE_SETTINGS,
        compute=compute,
        record=record,
    )
