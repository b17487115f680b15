"""Stage ``score_part``: one task's share of the training examples, where several tasks share the scoring."""

from __future__ import annotations

from pathlib import Path

from whence.config_file import load_config
from whence.influence.scores import open_pairwise, open_self
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import SCORE_SETTINGS, Trained, share_of, task_name
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(
    *, config: Path, model: Path, factors: Path, train_data: Path, generations: Path, task: int, parts: Path
) -> StageResult:
    """Score one task's parts of the training examples.

    Args:
        config: the resolved configuration, with the prompts and ``general.parallel_tasks``.
        model: the fine-tuned model.
        factors: its influence factors.
        train_data: the training examples.
        generations: the models' own answers, used as queries when ``scores.use_generated`` says so.
        task: the task's number, from 0.
        parts: receives the finished parts.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        trained = Trained.load(settings, model, train_data)
        frame, queries = trained.queries(generations)
        given = trained.scoring(factors) | {"scratch": work.outputs["parts"]}
        work.outputs["parts"].mkdir(parents=True, exist_ok=True)
        pairwise = open_pairwise(queries=queries, **given)
        share = share_of(settings, task, pairwise.data_partitions)
        pairwise.compute(share)
        if settings.scores.self_influence:
            open_self(**given).compute(share)
        return {"queries": float(len(frame)), "data_partitions": float(len(share))}

    def record(work: Workspace, run: StageRun) -> None:
        """The parts are kept only until they are merged."""

    return run_stage(
        task_name("score_part", task),
        settings,
        inputs={"model": model, "factors": factors, "train_data": train_data, "generations": generations},
        outputs={"parts": parts},
        settings=SCORE_SETTINGS,
        compute=compute,
        record=record,
    )
