"""Stage ``mmlu``: DeepEval's MMLU, or another question set in its layout, on the models the settings name."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from whence.config_file import load_config
from whence.evaluation.mmlu import evaluate_mmlu
from whence.files import write_atomically
from whence.models import load_base, load_model
from whence.stages.artifacts import MMLU, PREDICTIONS
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(*, config: Path, base_model: Path, model: Path, benchmark: Path) -> StageResult:
    """Answer the multiple-choice questions of the chosen subjects.

    Args:
        config: the resolved configuration.
        base_model: the base model, or the reference to it.
        model: the fine-tuned model.
        benchmark: receives ``mmlu.json`` (accuracy per task and model) and ``predictions.parquet``.
    """
    settings = load_config(config)
    mmlu = settings.evaluation.mmlu

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        results, predictions = {}, []
        metrics: dict[str, float] = {}
        for wanted, model_id, load, folder in (
            (mmlu.base, settings.models.base.id, load_base, base_model),
            (mmlu.finetuned, settings.models.finetuned.id, load_model, model),
        ):
            if not wanted:
                continue
            network, tokenizer = load(folder, settings.general)
            result = evaluate_mmlu(network, tokenizer, settings, model_id)
            results[model_id] = result.summary
            predictions.append(result.predictions)
            metrics |= result.metrics
            del network
        folder = work.outputs["benchmark"]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MMLU, json.dumps(results, indent=1))
        pd.concat(predictions, ignore_index=True).to_parquet(folder / PREDICTIONS, index=False)
        return metrics

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifacts(work.outputs["benchmark"], "mmlu")

    return run_stage(
        "mmlu",
        settings,
        inputs={"base_model": base_model, "model": model},
        outputs={"benchmark": benchmark},
        settings=["general", "models.base.id", "models.finetuned.id", "evaluation.mmlu", "evaluation.batch_size"],
        compute=compute,
        record=record,
    )
