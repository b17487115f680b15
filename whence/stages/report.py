"""Stage ``report``: everything of a run on one page that a person can read, and the tables behind it. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from whence.running import artifacts
from whence.running.declaration import Stage, Work
from whence.running.lineage import training_of
from whence.running.roles import with_model_names

if TYPE_CHECKING:
    from whence.report.material import Links, Material

SUMMARY_FILE = "summary.md"
COMPARABLE = ("prompts.csv", "examples.csv", "class_flow.csv", "sources.csv")  # tables that MLflow shows across runs


def compute(work: Work) -> dict[str, float]:
    from whence.report.material import Links
    from whence.report.report import report as make_report
    from whence.report.tables import write_tables
    from whence.tracking.address import Address

    tracking = Address.parse(work.config.tracking.uri).uri
    run = work.run
    run_id = (run.pipeline_path or "").rpartition("/")[2] or None
    links = Links(run.pipeline_url, run.kubeflow_url, tracking, run_id, tuple(run.not_recorded()))
    material = _material(work, links)
    page = make_report(material)
    work.outputs["report"].write_text(page.html, encoding="utf-8")
    write_tables(work.outputs["tables"], material, page.left_out)
    _write_card(work, material)
    return {
        "queries": float(len(material.queries)),
        "bytes": float(work.outputs["report"].stat().st_size),
        "left_out": float(len(page.left_out)),
    }


def _write_card(work: Work, material: Material) -> None:
    """The model card with what is measured by now; of a model that has one."""
    from whence.report.card import JSON, ModelCard

    begun = training_of(work.inputs["scores"]).get("card")
    if begun is None:  # a model that was trained elsewhere
        return
    grade = material.evidence.grade if material.evidence else None
    card = ModelCard.model_validate(begun).judged(material.config, material.measured, grade)
    card.write(work.outputs["tables"] / artifacts.CARD_FOLDER)
    finetuned = work.config.models.finetuned.path
    if finetuned is not None and (Path(finetuned) / JSON).is_file():  # the copy that train has put there
        card.write(Path(finetuned))


def _material(work: Work, links: Links) -> Material:
    import pandas as pd

    from whence.data.dataset import ExampleSet
    from whence.influence.results import Scores
    from whence.report.material import Material, read_evidence, read_json

    scores, comparison, spectra = Scores(work.inputs["scores"]), work.inputs["comparison"], work.inputs.get("spectra")
    evidence, benchmark = work.inputs.get("evidence"), work.inputs.get("benchmark")
    return Material(
        config=with_model_names(work.config, comparison),
        train=ExampleSet.read(scores.folder / artifacts.SCORED_EXAMPLES),
        history=training_of(scores.folder)["history"],
        measured=read_json(comparison / artifacts.COMPARISON_FILE),
        answers=pd.read_parquet(comparison / artifacts.ANSWERS_FILE).drop_duplicates("prompt_id"),
        queries=scores.queries,
        scores=scores.matrix,
        influences=scores.influences,
        origin=scores.origin,
        tokens=scores.tokens,
        modules=scores.modules,
        turns=scores.turns,
        self_influence=scores.self_influence,
        spectra=None if spectra is None else pd.read_parquet(spectra / artifacts.SPECTRA_FILE),
        pictures={file.stem: file.read_bytes() for file in sorted(spectra.glob("*.png"))} if spectra else {},
        evidence=None if evidence is None else read_evidence(evidence / artifacts.EVIDENCE_FILE, scores.origin),
        benchmark=None if benchmark is None else read_json(benchmark / artifacts.MMLU_FILE),
        absent={name: absence.why for name, absence in work.absent.items()},
        failures=_failures(work),
        links=links,
    )


def _failures(work: Work) -> list[str]:
    """What became of the stages that this run went on without."""
    return [absence.why for absence in work.absent.values() if absence.failed]


def record(work: Work) -> None:
    """Log page and tables; where a stage has failed, the run fails now, with everything else in place.

    Raises:
        PipelineError: naming the stages, and why.
    """
    import pandas as pd

    from whence.errors import PipelineError

    tables = work.outputs["tables"]
    work.run.log_artifact(work.outputs["report"], name="report.html", parent=True)
    work.run.log_artifacts(tables, "tables", parent=True)
    for name in COMPARABLE:
        if (tables / name).exists():
            work.run.log_table(pd.read_csv(tables / name), f"{Path(name).stem}.json", parent=True)
    work.run.describe(_description(work))
    if _failures(work):
        raise PipelineError(
            f"{'; '.join(_failures(work))}. The report of everything else is with this run in MLflow",
            hint="mend that and run again for the whole: what is finished in general.work_dir is reused",
        )


def _description(work: Work) -> str:
    """The headline with links, which hold wherever MLflow's pages are opened, and the summary without its own."""
    from urllib.parse import quote

    from whence.evaluation.metrics import fitting
    from whence.report.overview import NAMES
    from whence.report.tables import IN
    from whence.report.words import percent
    from whence.tracking.server import VERSION_TAG

    name, version = work.config.tracking.registered_model, work.run.pipeline_tags().get(VERSION_TAG)
    measured = json.loads((work.inputs["comparison"] / artifacts.COMPARISON_FILE).read_text(encoding="utf-8"))
    measure = fitting(measured["metrics"])[0]
    values = measured["metrics"].get(measure, {})
    evidence = work.inputs.get("evidence")
    grade = evidence and json.loads((evidence / artifacts.EVIDENCE_FILE).read_text(encoding="utf-8"))["grade"]["word"]
    pages = {
        "The report": work.run.pipeline_path and f"{work.run.pipeline_path}/artifacts/report.html",
        f"Version {version} of {name}": version and f"#/models/{quote(name)}/versions/{version}",
        "Kubeflow": work.run.kubeflow_url,
    }
    head = [f"**Evidence: {grade or 'not measured'}**"]
    if {"base", "finetuned"} <= values.keys():
        head.append(
            " → ".join(f"{percent(values[role]['value'])}" for role in ("base", "finetuned"))
            + f" {NAMES[measure].lower()}"
        )
    head += [f"[{title}]({page})" for title, page in pages.items() if page]
    text = (work.outputs["tables"] / SUMMARY_FILE).read_text(encoding="utf-8")
    return " · ".join(head) + "\n\n" + text.partition("\n")[2].partition(f"\n[{IN}")[0].strip()


STAGE = Stage(
    name="report",
    help="Write everything of a run on one page: answers, the examples behind them, and whether to believe it.",
    inputs=(
        artifacts.SCORES,
        artifacts.COMPARISON,
        artifacts.SPECTRA.without("Without it the page says why."),
        artifacts.EVIDENCE.without("Without it the page says that nobody has measured it."),
        artifacts.BENCHMARK.without("Without it the page says why."),
    ),
    outputs=(artifacts.REPORT, artifacts.TABLES),
    settings=("profile", "evaluation.confidence", "scores.top_k", "card"),
    compute=compute,
    record=record,
    group="pages",
    reuse=False,  # the page links to the record of this very run
)
