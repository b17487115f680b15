"""Stage ``report``: everything of a run on one page that a person can read, and the tables behind it. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from whence.config import Config
from whence.config_file import load_config
from whence.data.dataset import ExampleSet
from whence.errors import DataError
from whence.report import data_view
from whence.report.document import report as make_report
from whence.report.material import Links, Material
from whence.report.summary import summary_text
from whence.report.tables import example_table, for_spreadsheets, prompt_table
from whence.stages.artifacts import (
    COMPARISON,
    COMPARISON_TABLE,
    EVIDENCE,
    GENERATIONS,
    INFLUENCES,
    MMLU,
    MODULES,
    QUERIES,
    SCORES,
    SCORES_INFO,
    SELF_INFLUENCE,
    SPECTRA,
    TOKENS,
)
from whence.stages.runner import StageResult, run_stage
from whence.stages.scored import require_scores_of
from whence.stages.workspace import Workspace
from whence.tracking import StageRun
from whence.tracking.address import Address
from whence.validation.evidence import Evidence

PROMPTS, EXAMPLES, FLOW, SUSPECTS = "prompts.csv", "examples.csv", "class_flow.csv", "self_influence.csv"
ANSWER_COLUMNS = ["prompt_id", "prompt", "reference", "base_answer", "finetuned_answer"]


def run(
    *,
    config: Path,
    train_data: Path,
    history: Path,
    generations: Path,
    scores: Path,
    comparison: Path,
    spectra: Path,
    report: Path,
    summary: Path,
    tables: Path,
    evidence: Path | None = None,
    benchmark: Path | None = None,
) -> StageResult:
    """Write the report of a run.

    Args:
        config: the resolved configuration.
        train_data: the training examples.
        history: what training logged, as in ``training.json``.
        generations: the answers of both models.
        scores: the influences, with their parts by token and module.
        comparison: the measures of both models and the answers side by side.
        spectra: the spectra of the factors.
        report: receives the self-contained HTML page.
        summary: receives the headlines as Markdown.
        tables: receives what the page's tables hold, as CSV.
        evidence: whether the influences can be trusted; None where nobody has measured it.
        benchmark: the multiple-choice benchmark; None where it was switched off.
    """
    settings = load_config(config)
    given = {
        "train_data": train_data,
        "history": history,
        "generations": generations,
        "scores": scores,
        "comparison": comparison,
        "spectra": spectra,
    }
    given |= {name: path for name, path in (("evidence", evidence), ("benchmark", benchmark)) if path is not None}

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        links = Links(run.pipeline_url, run.kubeflow_url, Address.parse(settings.tracking.uri).uri, run.run_id)
        material = _material(settings, given, links)
        made = make_report(material)
        work.outputs["report"].write_text(made.html, encoding="utf-8")
        work.outputs["summary"].write_text(summary_text(material, made.left_out), encoding="utf-8")
        _write_tables(work.outputs["tables"], material)
        return {
            "queries": float(len(material.queries)),
            "bytes": float(work.outputs["report"].stat().st_size),
            "left_out": float(len(made.left_out)),
        }

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifact(work.outputs["report"], "report", name="report.html")
        run.log_artifact(work.outputs["summary"], "report", name="summary.md")
        run.log_artifacts(work.outputs["tables"], "report")
        for name in (PROMPTS, EXAMPLES, FLOW):
            if (work.outputs["tables"] / name).exists():
                run.log_table(pd.read_csv(work.outputs["tables"] / name), f"{Path(name).stem}.json")

    return run_stage(
        "report",
        settings,
        inputs=given,
        outputs={"report": report, "summary": summary, "tables": tables},
        settings=["profile", "evaluation.confidence", "scores.top_k"],
        compute=compute,
        record=record,
        reuse=False,  # the page links to the record of this very run
    )


def _material(settings: Config, given: dict[str, Path], links: Links) -> Material:
    scores, comparison = given["scores"], given["comparison"]
    require_scores_of(given["train_data"], scores)
    answers = pd.read_parquet(given["generations"] / GENERATIONS)
    own = _table(scores / SELF_INFLUENCE)
    origin = _json(scores / SCORES_INFO)
    return Material(
        config=settings,
        train=ExampleSet.read(given["train_data"]),
        history=_json(given["history"])["history"],
        measured=_json(comparison / COMPARISON),
        answers=pd.read_parquet(comparison / COMPARISON_TABLE).drop_duplicates("prompt_id")[ANSWER_COLUMNS],
        confidence={(row.prompt_id, row.model_id): float(np.exp(row.mean_logprob)) for row in answers.itertuples()},
        queries=pd.read_parquet(scores / QUERIES),
        scores=load_file(scores / SCORES)["all_modules"],
        influences=pd.read_parquet(scores / INFLUENCES),
        origin=origin,
        tokens=_table(scores / TOKENS),
        modules=_table(scores / MODULES),
        self_influence=None if own is None else own["self_influence"].to_numpy(),
        spectra=_table(given["spectra"] / SPECTRA),
        pictures={file.stem: file.read_bytes() for file in sorted(given["spectra"].glob("*.png"))},
        evidence=_evidence(given["evidence"] / EVIDENCE, origin) if "evidence" in given else None,
        benchmark=_json(given["benchmark"] / MMLU) if "benchmark" in given else None,
        links=links,
    )


def _evidence(path: Path, origin: dict[str, Any]) -> Evidence:
    """The evidence, which must be of these very scores.

    Raises:
        DataError: naming both fingerprints.
    """
    evidence = Evidence.read(path)
    for name, value in evidence.fingerprints.items():
        if origin.get(name) not in (None, value):
            raise DataError(
                f"the evidence in {path} is of another {name} ({value[:12]}...) than the scores "
                f"({origin[name][:12]}...); run `whence validate` on these scores"
            )
    return evidence


def _write_tables(folder: Path, material: Material) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for_spreadsheets(prompt_table(material)).to_csv(folder / PROMPTS, index=False)
    for_spreadsheets(example_table(material)).to_csv(folder / EXAMPLES, index=False)
    suspects, flow = data_view.suspects(material), data_view.class_flow(material)
    if suspects:
        (folder / SUSPECTS).write_text(data_view.suspects_csv(suspects), encoding="utf-8")
    if flow is not None:
        for_spreadsheets(data_view.flow_table(flow)).to_csv(folder / FLOW, index=False)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; run the stage that makes it again") from error


def _table(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.exists() else None
