"""Stage ``merge_factors``: put together the factors that several tasks fitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whence.config_file import load_config
from whence.influence.factors import write_factors
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import FIT_SETTINGS, Trained, factor_metrics, numbered
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(
    *,
    config: Path,
    model: Path,
    train_data: Path,
    eigenvectors: Path,
    lambdas: Sequence[Path],
    factors: Path,
) -> StageResult:
    """Put the factors together; they are what ``fit_factors`` alone would have fitted.

    Args:
        config: the resolved configuration.
        model: the fine-tuned model.
        train_data: the training examples.
        eigenvectors: of the covariances that all tasks summed.
        lambdas: the parts of every task of ``fit_lambdas``.
        factors: receives the factors in kronfluence's own layout, and ``factors.json``.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        trained = Trained.load(settings, model, train_data)
        fit, identity = trained.open_fit(work.scratch, [eigenvectors, *lambdas])
        return factor_metrics(write_factors(fit, identity, work.outputs["factors"], seconds={}))

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifacts(work.outputs["factors"], "factors")

    inputs = {"model": model, "train_data": train_data, "eigenvectors": eigenvectors}
    return run_stage(
        "merge_factors",
        settings,
        inputs=inputs | numbered("lambdas", lambdas),
        outputs={"factors": factors},
        settings=FIT_SETTINGS,
        compute=compute,
        record=record,
    )
