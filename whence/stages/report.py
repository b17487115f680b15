"""Stage ``report``: everything of a run on one page that a person can read, and the tables behind it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whence.running import artifacts
from whence.running.declaration import Stage, Work
from whence.running.lineage import training_of
from whence.running.roles import with_model_names

if TYPE_CHECKING:
    import pandas as pd

    from whence.report.material import Links, Material

SUMMARY = "summary.md"
PROMPTS, EXAMPLES, FLOW, SUSPECTS = "prompts.csv", "examples.csv", "class_flow.csv", "self_influence.csv"
ANSWER_COLUMNS = ["prompt_id", "prompt", "reference", "base_answer", "finetuned_answer"]


def compute(work: Work) -> dict[str, float]:
    from whence.files import write_atomically
    from whence.report.document import report as make_report
    from whence.report.material import Links
    from whence.report.summary import summary_text
    from whence.tracking.address import Address

    tracking = Address.parse(work.config.tracking.uri).uri
    material = _material(work, Links(work.run.pipeline_url, work.run.kubeflow_url, tracking, work.run.run_id))
    made = make_report(material)
    work.outputs["report"].write_text(made.html, encoding="utf-8")
    write_atomically(work.outputs["tables"] / SUMMARY, summary_text(material, made.left_out))
    _write_tables(work.outputs["tables"], material)
    return {
        "queries": float(len(material.queries)),
        "bytes": float(work.outputs["report"].stat().st_size),
        "left_out": float(len(made.left_out)),
    }


def _material(work: Work, links: Links) -> Material:
    import numpy as np
    import pandas as pd
    from safetensors.numpy import load_file

    from whence.data.dataset import ExampleSet
    from whence.report.material import Material, read_evidence, read_json

    scores, comparison, spectra = (work.inputs[name] for name in ("scores", "comparison", "spectra"))
    answers = pd.read_parquet(comparison / artifacts.GENERATIONS_FILE)
    own = _table(scores / artifacts.SELF_INFLUENCE_FILE)
    origin = read_json(scores / artifacts.SCORES_INFO_FILE)
    evidence, benchmark = work.inputs.get("evidence"), work.inputs.get("benchmark")
    compared = pd.read_parquet(comparison / artifacts.ANSWERS_FILE)
    return Material(
        config=with_model_names(work.config, comparison),
        train=ExampleSet.read(scores / artifacts.SCORED_EXAMPLES),
        history=training_of(scores)["history"],
        measured=read_json(comparison / artifacts.COMPARISON_FILE),
        answers=compared.drop_duplicates("prompt_id")[ANSWER_COLUMNS],
        confidence={(row.prompt_id, row.model_id): float(np.exp(row.mean_logprob)) for row in answers.itertuples()},
        queries=pd.read_parquet(scores / artifacts.QUERIES_FILE),
        scores=load_file(scores / artifacts.SCORES_FILE)["all_modules"],
        influences=pd.read_parquet(scores / artifacts.INFLUENCES_FILE),
        origin=origin,
        tokens=_table(scores / artifacts.TOKENS_FILE),
        modules=_table(scores / artifacts.MODULES_FILE),
        self_influence=None if own is None else own["self_influence"].to_numpy(),
        spectra=_table(spectra / artifacts.SPECTRA_FILE),
        pictures={file.stem: file.read_bytes() for file in sorted(spectra.glob("*.png"))},
        evidence=None if evidence is None else read_evidence(evidence / artifacts.EVIDENCE_FILE, origin),
        benchmark=None if benchmark is None else read_json(benchmark / artifacts.MMLU_FILE),
        links=links,
    )


def _table(path: Path) -> pd.DataFrame | None:
    import pandas as pd

    return pd.read_parquet(path) if path.exists() else None


def _write_tables(folder: Path, material: Material) -> None:
    from whence.report import data_view
    from whence.report.tables import example_table, for_spreadsheets, prompt_table

    for_spreadsheets(prompt_table(material)).to_csv(folder / PROMPTS, index=False)
    for_spreadsheets(example_table(material)).to_csv(folder / EXAMPLES, index=False)
    suspects, flow = data_view.suspects(material), data_view.class_flow(material)
    if suspects:
        (folder / SUSPECTS).write_text(data_view.suspects_csv(suspects), encoding="utf-8")
    if flow is not None:
        for_spreadsheets(data_view.flow_table(flow)).to_csv(folder / FLOW, index=False)


def record(work: Work) -> None:
    import pandas as pd

    tables = work.outputs["tables"]
    work.run.log_artifact(work.outputs["report"], "report", name="report.html")
    work.run.log_artifacts(tables, "report")
    for name in (PROMPTS, EXAMPLES, FLOW):
        if (tables / name).exists():
            work.run.log_table(pd.read_csv(tables / name), f"{Path(name).stem}.json")


STAGE = Stage(
    name="report",
    help="Write everything of a run on one page: answers, the examples behind them, and whether to believe it.",
    inputs=(
        artifacts.SCORES,
        artifacts.COMPARISON,
        artifacts.SPECTRA,
        artifacts.EVIDENCE.without("Without it the page says that nobody has measured it."),
        artifacts.BENCHMARK.without("Left out where it is switched off."),
    ),
    outputs=(artifacts.REPORT, artifacts.TABLES),
    settings=("profile", "evaluation.confidence", "scores.top_k"),
    compute=compute,
    record=record,
    group="pages",
    reuse=False,  # the page links to the record of this very run
)
