"""Stage ``fit_factors``: fit the influence factors of the fine-tuned model on the analysis samples."""

from __future__ import annotations

from pathlib import Path

from whence.config_file import load_config
from whence.influence.factors import fit_factors
from whence.models import tokenizer_fingerprint
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import FIT_SETTINGS, Trained, factor_metrics
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(*, config: Path, model: Path, train_data: Path, factors: Path) -> StageResult:
    """Fit the influence factors.

    Args:
        config: the resolved configuration.
        model: the fine-tuned model.
        train_data: the training examples, whose first ``factors.num_samples`` are analysed.
        factors: receives the factors in kronfluence's own layout, and ``factors.json``.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        trained = Trained.load(settings, model, train_data)
        return factor_metrics(
            fit_factors(
                trained.network,
                trained.examples,
                settings,
                work.outputs["factors"],
                trained.pad_token_id,
                tokenizer_fingerprint=tokenizer_fingerprint(trained.tokenizer),
            )
        )

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifacts(work.outputs["factors"], "factors")

    return run_stage(
        "fit_factors",
        settings,
        inputs={"model": model, "train_data": train_data},
        outputs={"factors": factors},
        settings=FIT_SETTINGS,
        compute=compute,
        record=record,
    )
