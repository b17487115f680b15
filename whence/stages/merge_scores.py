"""Stage ``merge_scores``: put together the scores that several tasks computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whence.config_file import load_config
from whence.influence.scores import open_pairwise, open_self
from whence.stages.runner import StageResult, run_stage
from whence.stages.score_files import record_scores, write_scores
from whence.stages.trained import SCORE_SETTINGS, Trained, numbered
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(
    *,
    config: Path,
    model: Path,
    factors: Path,
    train_data: Path,
    generations: Path,
    parts: Sequence[Path],
    scores: Path,
) -> StageResult:
    """Put the scores together; they are what ``score`` alone would have computed.

    Args:
        config: the resolved configuration, with the prompts.
        model: the fine-tuned model.
        factors: its influence factors.
        train_data: the training examples.
        generations: the models' own answers, used as queries when ``scores.use_generated`` says so.
        parts: of every task of ``score_part``.
        scores: receives what the stage ``score`` writes.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        trained = Trained.load(config, model, train_data)
        frame, queries = trained.queries(generations)
        given = trained.scoring(factors) | {"scratch": work.scratch, "sources": parts}
        pairwise = open_pairwise(queries=queries, **given)
        own = open_self(**given) if settings.scores.self_influence else None
        return write_scores(work.outputs["scores"], trained, factors, frame, pairwise, own)

    def record(work: Workspace, run: StageRun) -> None:
        record_scores(work.outputs["scores"], run)

    inputs = {"model": model, "factors": factors, "train_data": train_data, "generations": generations}
    return run_stage(
        "merge_scores",
        settings,
        inputs=inputs | numbered("part", parts),
        outputs={"scores": scores},
        settings=SCORE_SETTINGS,
        compute=compute,
        record=record,
    )
