"""Stage ``fit_eigenvectors``: decompose the covariances that several tasks summed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whence.config_file import load_config
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import FIT_SETTINGS, Trained, numbered
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(*, config: Path, model: Path, train_data: Path, covariances: Sequence[Path], eigenvectors: Path) -> StageResult:
    """Decompose the sum of all tasks' covariances, module by module.

    Args:
        config: the resolved configuration.
        model: the fine-tuned model.
        train_data: the training examples.
        covariances: the parts of every task of ``fit_covariances``.
        eigenvectors: receives eigenvectors and eigenvalues.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        fit, identity = Trained.load(settings, model, train_data).open_fit(work.outputs["eigenvectors"], covariances)
        fit.eigenvectors()
        return {"modules": float(len(identity.modules))}

    def record(work: Workspace, run: StageRun) -> None:
        """They are kept with the merged factors."""

    return run_stage(
        "fit_eigenvectors",
        settings,
        inputs={"model": model, "train_data": train_data} | numbered("covariances", covariances),
        outputs={"eigenvectors": eigenvectors},
        settings=FIT_SETTINGS,
        compute=compute,
        record=record,
    )
