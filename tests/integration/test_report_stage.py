"""The stage report on folders as the other stages leave them, with a real MLflow database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import report_helpers
from mlflow import MlflowClient
from report_helpers import data_of

from whence.errors import DataError, PipelineError
from whence.files import write_json
from whence.report.report import report
from whence.running.runner import run_stage
from whence.stages.report import STAGE


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    return {name: tmp_path / name for name in ("report", "tables")}


def test_the_stage_reads_what_the_other_stages_left(tmp_path: Path, outputs: dict[str, Path]) -> None:
    material = report_helpers.material()
    inputs = report_helpers.write(material, tmp_path / "in")
    result = run_stage(STAGE, inputs=inputs, outputs=outputs)
    html = outputs["report"].read_text(encoding="utf-8")
    assert data_of(html) == data_of(report(material).html)
    assert result.metrics["bytes"] == len(html.encode("utf-8"))
    assert "Weak" in (outputs["tables"] / "summary.md").read_text(encoding="utf-8")
    names = {file.name for file in outputs["tables"].iterdir() if file.is_file()}
    assert names == {"summary.md", "prompts.csv", "examples.csv", "class_flow.csv", "self_influence.csv", "sources.csv"}


def test_what_was_not_made_is_said_with_the_reason(tmp_path: Path, outputs: dict[str, Path]) -> None:
    inputs = report_helpers.write(report_helpers.material(), tmp_path / "in")
    del inputs["evidence"]
    write_json(inputs["benchmark"] / "absent.json", {"why": "switched off: evaluation.mmlu.enabled is false"})
    run_stage(STAGE, inputs=inputs, outputs=outputs)
    html = outputs["report"].read_text(encoding="utf-8")
    assert "No evidence was given to this report" in html
    assert "MMLU: switched off: evaluation.mmlu.enabled is false." in html


def test_a_failed_stage_is_named_in_the_first_lines_and_fails_the_run_once_the_report_is_kept(
    tmp_path: Path, outputs: dict[str, Path]
) -> None:
    inputs = report_helpers.write(report_helpers.material(), tmp_path / "in")
    for name, stage in (("benchmark", "mmlu"), ("spectra", "inspect")):
        shutil.rmtree(inputs[name])
        write_json(inputs[name] / "absent.json", {"why": f"{stage} failed: no disk", "failed": True})
    with pytest.raises(
        PipelineError, match=r"inspect failed: no disk; mmlu failed: no disk\. The report of everything"
    ):
        run_stage(STAGE, inputs=inputs, outputs=outputs)
    html, summary = outputs["report"].read_text("utf-8"), (outputs["tables"] / "summary.md").read_text("utf-8")
    first = html.partition("</h1>")[2]
    assert first.index("This report is not the whole run.") < first.index("inspect failed: no disk; mmlu failed") < 300
    assert "MMLU: mmlu failed: no disk." in html
    assert "No spectra: inspect failed: no disk." in html
    assert summary.splitlines()[2] == "**Not the whole run:** inspect failed: no disk; mmlu failed: no disk"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("whence").experiment_id])
    assert run.info.status == "FAILED"
    assert "report.html" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_the_stage_keeps_the_page_and_its_tables_in_mlflow(tmp_path: Path, outputs: dict[str, Path]) -> None:
    inputs = report_helpers.write(report_helpers.material(), tmp_path / "in")
    run_stage(STAGE, inputs=inputs, outputs=outputs)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("whence").experiment_id])
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"prompts.json", "examples.json", "class_flow.json", "report.html", "tables"} <= kept
    inside = {item.path for item in client.list_artifacts(run.info.run_id, "tables")}
    assert {"tables/summary.md", "tables/self_influence.csv"} <= inside
    note = run.data.tags["mlflow.note.content"]
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/report.html"
    assert note.startswith("<!-- report -->\n**Evidence: weak** · ")
    assert f"[The report]({page})" in note
    assert "**Fine-tuned on:**" in note
    assert "This run in" not in note


def test_what_mlflow_has_not_taken_is_on_the_page(tmp_path: Path, outputs: dict[str, Path]) -> None:
    inputs = report_helpers.write(report_helpers.material(), tmp_path / "in")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    parent = client.create_run(client.create_experiment("whence"), tags={"whence.not_recorded.train": "model <b>: 413"})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_RUN_ID", parent.info.run_id)
        run_stage(STAGE, inputs=inputs, outputs=outputs)
    html = outputs["report"].read_text(encoding="utf-8")
    assert "<strong>Not in MLflow:</strong> train: model &lt;b&gt;: 413" in html


def test_evidence_of_other_scores_is_refused(tmp_path: Path, outputs: dict[str, Path]) -> None:
    other = report_helpers.evidence().model_copy(update={"fingerprints": {"factors": "0" * 64}})
    inputs = report_helpers.write(report_helpers.material(evidence=other), tmp_path / "in")
    with pytest.raises(DataError, match=r"is of another factors \(000000000000\.\.\.\) than the scores"):
        run_stage(STAGE, inputs=inputs, outputs=outputs)
