"""Stage ``compare``: base against fine-tuned, and every answer beside the training examples behind it. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from whence import plots
from whence.config_file import load_config
from whence.data.prompts import load_prompts
from whence.evaluation.comparison import compare_models, headline_metrics, join_influences
from whence.files import write_atomically
from whence.report.page import Section, Table, page
from whence.stages.artifacts import (
    COMPARISON,
    COMPARISON_TABLE,
    EVAL_ANSWERS,
    GENERATIONS,
    INFLUENCES,
)
from whence.stages.runner import StageResult, run_stage
from whence.stages.scored import require_scores_of
from whence.stages.workspace import Workspace
from whence.tracking import StageRun

EXAMPLES_SHOWN = 3
HOW_TO_READ = f"""Below every prompt stand the {EXAMPLES_SHOWN} training examples that helped its answer most and the \
{EXAMPLES_SHOWN} that harmed it most: training on a helpful one lowered the answer's loss, on a harmful one raised it.

The z-score is the influence in standard deviations from the mean over all training examples."""


def run(
    *, config: Path, generations: Path, scores: Path, train_data: Path, comparison: Path, comparison_page: Path
) -> StageResult:
    """Compare the models and join their answers with the influences.

    Args:
        config: the resolved configuration, with the prompts.
        generations: the answers of both models.
        scores: the influences.
        train_data: the training examples.
        comparison: receives ``comparison.json`` (measures with intervals) and ``comparison.parquet`` (per prompt).
        comparison_page: receives both as a self-contained HTML page.
    """
    settings = load_config(config)
    references = {prompt.prompt_id: prompt.reference for prompt in load_prompts(settings)}

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        require_scores_of(train_data, scores)
        answers = pd.read_parquet(generations / GENERATIONS)
        measured = compare_models(pd.read_parquet(generations / EVAL_ANSWERS), answers, references, settings)
        headline = headline_metrics(measured)
        table = join_influences(answers, pd.read_parquet(scores / INFLUENCES), references, settings)
        folder = work.outputs["comparison"]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / COMPARISON, json.dumps(measured | {"headline": headline}, indent=1))
        table.to_parquet(folder / COMPARISON_TABLE, index=False)
        work.outputs["comparison_page"].write_text(_page(measured, table), encoding="utf-8")
        return headline

    def record(work: Workspace, run: StageRun) -> None:
        measured = json.loads((work.outputs["comparison"] / COMPARISON).read_text(encoding="utf-8"))
        run.log_parent_metrics(measured["headline"])
        run.log_table(pd.read_parquet(work.outputs["comparison"] / COMPARISON_TABLE), "comparison.json")
        run.log_artifacts(work.outputs["comparison"], "comparison")
        run.log_artifact(work.outputs["comparison_page"], "plots", name="comparison.html")

    return run_stage(
        "compare",
        settings,
        inputs={"generations": generations, "scores": scores, "train_data": train_data},
        outputs={"comparison": comparison, "comparison_page": comparison_page},
        settings=["general.seed", "models", "prompts", "evaluation.bootstrap_samples", "evaluation.confidence"],
        compute=compute,
        record=record,
    )


def _page(measured: dict[str, Any], table: pd.DataFrame) -> str:
    sections = [
        Section(
            "Base against fine-tuned",
            text=f"Bars are values from 0 to 1, whiskers {measured['confidence']:.0%} bootstrap intervals."
            + _who_is_who(measured["models"]),
            figures=[("Measures of both models", plots.comparison_bars(measured["metrics"]))],
        )
    ]
    names = table["query_id"].fillna(table["prompt_id"])  # a prompt without a reference is no query
    sections += [_prompt_section(str(name), rows) for name, rows in table.groupby(names, sort=False)]
    return page("Comparison", sections, text=HOW_TO_READ)


def _who_is_who(models: dict[str, str]) -> str:
    """Which models stand under the two names, where they have others: champion and candidate, when retraining."""
    named = {"base": "base", "finetuned": "fine-tuned"}
    other = [f"{named[role]} is {model_id}" for role, model_id in models.items() if model_id != role]
    return f" Here {' and '.join(other)}." if other else ""


def _prompt_section(name: str, rows: pd.DataFrame) -> Section:
    """One prompt with both answers, and the training examples at both ends of its ranking."""
    shown = rows[rows["rank"] <= EXAMPLES_SHOWN]
    examples = pd.DataFrame(
        {
            "effect": shown["direction"],
            "z_score": shown["z_score"],
            "training_example": shown["example_prompt"],
            "its_answer": shown["example_completion"],
        }
    )
    return Section(
        name,
        text=str(rows["prompt"].iloc[0]),
        tables=[Table(rows.head(1)[["reference", "base_answer", "finetuned_answer"]]), Table(examples)],
    )
