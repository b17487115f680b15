"""Stage ``train``: fine-tune the base model; a rerun after a crash goes on from the last checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from whence import plots
from whence.config_file import load_config
from whence.data.dataset import ExampleSet
from whence.data.tokenization import TokenizedExamples
from whence.models import load_base
from whence.report.page import Section, page
from whence.stages.artifacts import TRAINING
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun
from whence.training import train


def run(
    *, config: Path, base_model: Path, train_data: Path, eval_data: Path, model: Path, history: Path, loss_curve: Path
) -> StageResult:
    """Fine-tune the base model on the training data.

    Args:
        config: the resolved configuration.
        base_model: the base model, or the reference to it.
        train_data: the training examples.
        eval_data: the held-out examples, for the evaluation loss.
        model: receives the fine-tuned model (safetensors, tokenizer) and ``training.json``.
        history: receives a copy of ``training.json``, for those who do not need the model.
        loss_curve: receives the loss curve as a self-contained HTML page.
    """
    settings = load_config(config)
    live: set[int] = set()

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        network, tokenizer = load_base(base_model, settings.general)
        examples, held_out = (
            TokenizedExamples.from_frame(ExampleSet.read(folder).frame, tokenizer, settings)
            for folder in (train_data, eval_data)
        )

        def on_log(step: int, metrics: dict[str, float]) -> None:
            live.add(step)
            run.log_metrics(metrics, step=step)

        result = train(
            network, tokenizer, examples, held_out, settings,
            output=work.outputs["model"], checkpoints=work.scratch, on_log=on_log,
        )  # fmt: skip
        shutil.copyfile(work.outputs["model"] / TRAINING, work.outputs["history"])
        curve = Section("Loss", figures=[("Training and evaluation loss", plots.loss_curve(result.history))],
                        numbers=result.metrics)  # fmt: skip
        work.outputs["loss_curve"].write_text(page("Fine-tuning", [curve]), encoding="utf-8")
        return result.metrics

    def record(work: Workspace, run: StageRun) -> None:
        logged = json.loads(work.outputs["history"].read_text(encoding="utf-8"))["history"]
        for entry in logged:  # what an earlier, crashed or reused run computed belongs into this record too
            if entry["step"] not in live:
                run.log_metrics({key: value for key, value in entry.items() if key != "step"}, step=entry["step"])
        run.log_artifact(work.outputs["loss_curve"], "plots", name="loss_curve.html")
        fingerprint = ExampleSet.read(train_data).info.fingerprint
        run.log_model_version(
            work.outputs["model"], settings.tracking.registered_model, tags={"whence.data_fingerprint": fingerprint}
        )

    outputs = {"model": model, "history": history, "loss_curve": loss_curve}
    inputs = {"base_model": base_model, "train_data": train_data, "eval_data": eval_data}
    return run_stage(
        "train",
        settings,
        inputs=inputs,
        outputs=outputs,
        settings=["general", "training", "dataset.loss_on", "dataset.template"],
        compute=compute,
        record=record,
    )
