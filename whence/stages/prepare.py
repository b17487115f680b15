"""Stage ``prepare``: everything that can be wrong is found here, on a CPU, before any accelerator is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from whence.config_file import inline_prompts, parse_config
from whence.data.dataset import ExampleSet
from whence.data.preparation import prepare_datasets
from whence.files import write_atomically
from whence.models import load_base_tokenizer, write_base
from whence.stages.checks import check, check_base_model
from whence.stages.runner import StageResult, emit, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(
    *,
    settings: str,
    overrides: Mapping[str, Any],
    config: Path,
    base_model: Path,
    train_data: Path,
    eval_data: Path,
    tasks: Path | None = None,
) -> StageResult:
    """Check the settings and what they refer to, then write the resolved configuration and the datasets.

    Args:
        settings: the profile, as YAML text.
        overrides: settings by dotted key that win over the profile.
        config: receives ``config.yaml`` with every value explicit.
        base_model: receives the built-in model, or a reference to the hub model or folder.
        train_data: receives the training examples.
        eval_data: receives the held-out examples.
        tasks: receives the numbers of the tasks that are to share the work, as a JSON list.
    """
    try:
        resolved = parse_config(settings, overrides, origin="the profile with its overrides")
        check(resolved)
        resolved = inline_prompts(resolved, from_storage=True)  # so that all stages ask the same
    except Exception as error:
        emit("prepare", "failed", message=str(error))
        raise

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerBase:
            write_base(resolved, texts, work.outputs["base_model"])
            return load_base_tokenizer(work.outputs["base_model"])

        train, evaluation = prepare_datasets(resolved, tokenizer_for)
        check_base_model(resolved, work.outputs["base_model"])
        train.write(work.outputs["train_data"])
        evaluation.write(work.outputs["eval_data"])
        write_atomically(work.outputs["config"], resolved.to_yaml())
        if tasks is not None:
            write_atomically(tasks, json.dumps(list(range(resolved.general.parallel_tasks or 1))))
        return _counts("train", train) | _counts("eval", evaluation)

    def record(work: Workspace, run: StageRun) -> None:
        for name in ("train_data", "eval_data"):
            info = ExampleSet.read(work.outputs[name]).info
            run.log_dataset(name, info.fingerprint, info.source, info.rows, context=info.split)
            run.log_artifact(work.outputs[name] / "dataset.json", name)
        run.log_artifact(work.outputs["config"], name="config.yaml")

    outputs = {"config": config, "base_model": base_model, "train_data": train_data, "eval_data": eval_data}
    # Not reused: a hub dataset, a bucket or a tracking server may have changed since the last look.
    return run_stage(
        "prepare",
        resolved,
        inputs={},
        outputs=outputs,
        settings=["general", "models", "dataset", "prompts"],
        compute=compute,
        record=record,
        reuse=False,
    )


def _counts(name: str, examples: ExampleSet) -> dict[str, float]:
    info = examples.info
    counts = {f"{name}_rows": float(info.rows), f"{name}_truncated": float(info.truncated)}
    return counts | {f"{name}_dropped_{reason}": float(count) for reason, count in info.dropped.items()}
