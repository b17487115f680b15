"""Stage ``generate``: what the base and the fine-tuned model answer, to the prompts and to the held-out rows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from whence.config_file import load_config
from whence.data.dataset import ExampleSet
from whence.data.prompts import load_prompts
from whence.evaluation.generation import answer_examples, generate
from whence.files import write_atomically
from whence.models import load_base, load_model
from whence.stages.artifacts import ANSWERED_BY, EVAL_ANSWERS, GENERATIONS
from whence.stages.provenance import model_digest
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun


def run(*, config: Path, base_model: Path, model: Path, eval_data: Path, generations: Path) -> StageResult:
    """Answer the prompts and the held-out rows with both models.

    Args:
        config: the resolved configuration, with the prompts.
        base_model: the base model, or the reference to it.
        model: the fine-tuned model.
        eval_data: the held-out examples.
        generations: receives ``generations.parquet`` (prompts), ``eval_answers.parquet`` (held-out rows) and
            ``models.json`` (the digest of each model that answered).
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        held_out = ExampleSet.read(eval_data)
        prompts = load_prompts(settings)
        answers, eval_answers, answered_by = [], [], {}
        for model_id, load, folder in (
            (settings.models.base.id, load_base, base_model),
            (settings.models.finetuned.id, load_model, model),
        ):
            network, tokenizer = load(folder, settings.general)
            answers.append(generate(network, tokenizer, prompts, settings, model_id))
            rows = answer_examples(network, tokenizer, held_out.frame, settings, sorted(held_out.info.labels))
            eval_answers.append(rows.assign(model_id=model_id))
            answered_by[model_id] = model_digest(folder)
            del network  # two models at once may not fit
        folder = work.outputs["generations"]
        folder.mkdir(parents=True, exist_ok=True)
        table = pd.concat(answers, ignore_index=True)
        table.to_parquet(folder / GENERATIONS, index=False)
        pd.concat(eval_answers, ignore_index=True).to_parquet(folder / EVAL_ANSWERS, index=False)
        write_atomically(folder / ANSWERED_BY, json.dumps(answered_by))
        return {
            "prompts": float(len(prompts)),
            "eval_rows": float(len(eval_answers[0])),
            "seconds_per_prompt": float(table["seconds"].mean()),
        }

    def record(work: Workspace, run: StageRun) -> None:
        run.log_table(pd.read_parquet(work.outputs["generations"] / GENERATIONS), "generations.json")
        run.log_artifacts(work.outputs["generations"], "generations")

    return run_stage(
        "generate",
        settings,
        inputs={"base_model": base_model, "model": model, "eval_data": eval_data},
        outputs={"generations": generations},
        settings=["general", "models.base.id", "models.finetuned.id", "generation", "prompts", "dataset.template",
                  "evaluation.batch_size", "evaluation.num_samples"],
        compute=compute,
        record=record,
    )  # fmt: skip
