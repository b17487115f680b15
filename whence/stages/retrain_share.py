"""Stage ``retrain_share``: one task's share of the retrainings that ``validate`` needs, where tasks share them."""

from __future__ import annotations

import shutil
from pathlib import Path

from whence.config_file import load_config
from whence.stages.evidence import Gathering
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import task_name
from whence.stages.validate import SETTINGS
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(
    *,
    config: Path,
    base_model: Path,
    model: Path,
    factors: Path,
    train_data: Path,
    generations: Path,
    scores: Path,
    task: int,
    retrainings: Path,
) -> StageResult:
    """Do one task's retrainings of the measures that are asked for.

    Args:
        config: the resolved configuration, with the prompts and ``general.parallel_tasks``.
        base_model: the base model, or the reference to it, to train again.
        model: the fine-tuned model.
        factors: its influence factors.
        train_data: the training examples.
        generations: the models' own answers, queries where ``scores.use_generated`` says so.
        scores: the influence scores, which say what a counterfactual leaves out.
        task: the task's number, from 0.
        retrainings: receives a file per retraining: what it changed, and the log-probability of every query's answer.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        gathering = Gathering.open(work.scratch, settings, model, base_model, factors, train_data, generations, scores)
        files = gathering.retrain(task)
        folder = work.outputs["retrainings"]
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy2(file, folder)
        return {"retrainings": float(len(files))}

    def record(work: Workspace, run: StageRun) -> None:
        """The outcomes are recorded where they are judged."""

    return run_stage(
        task_name("retrain_share", task),
        settings,
        inputs={"base_model": base_model, "model": model, "factors": factors, "train_data": train_data,
                "generations": generations, "scores": scores},
        outputs={"retrainings": retrainings},
        settings=SETTINGS,
        compute=compute,
        record=record,
        reuse=False,  # every retraining is kept by itself, in general.work_dir
    )  # fmt: skip
