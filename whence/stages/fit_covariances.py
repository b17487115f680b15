"""Stage ``fit_covariances``: one task's share of covariances, where several tasks share the fit of the factors."""

from __future__ import annotations

from pathlib import Path

from whence.config_file import load_config
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import FIT_SETTINGS, Trained, share_of, task_name
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(*, config: Path, model: Path, train_data: Path, task: int, covariances: Path) -> StageResult:
    """Sum covariances over one task's parts of the data.

    Args:
        config: the resolved configuration, with ``general.parallel_tasks``.
        model: the fine-tuned model.
        train_data: the training examples, whose first ``factors.num_samples`` are analysed.
        task: the task's number, from 0.
        covariances: receives the finished parts.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        trained = Trained.load(settings, model, train_data)
        fit, _ = trained.open_fit(work.outputs["covariances"])
        parts = share_of(settings, task, fit.plan.data_partitions)
        fit.covariances(parts)
        return {"data_partitions": float(len(parts))}

    def record(work: Workspace, run: StageRun) -> None:
        """The parts are kept only until they are merged."""

    return run_stage(
        task_name("fit_covariances", task),
        settings,
        inputs={"model": model, "train_data": train_data},
        outputs={"covariances": covariances},
        settings=FIT_SETTINGS,
        compute=compute,
        record=record,
    )
