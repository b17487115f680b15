"""The stage report on folders as the other stages leave them, with a real MLflow database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import report_helpers
from mlflow import MlflowClient
from report_helpers import data_of

from whence.errors import DataError
from whence.report.report import report
from whence.stages import report as stage


def test_the_stage_reads_what_the_other_stages_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    material = report_helpers.material()
    given = report_helpers.write(material, tmp_path / "in")
    out = {name: tmp_path / name for name in ("report", "summary", "tables")}
    result = stage.run(**given, **out)
    html = out["report"].read_text(encoding="utf-8")
    wanted = data_of(report(material).html)
    assert data_of(html) == wanted
    assert result.metrics["bytes"] == len(html.encode("utf-8"))
    assert "Weak" in out["summary"].read_text(encoding="utf-8")
    names = {file.name for file in out["tables"].iterdir()}
    assert names == {"summary.md", "prompts.csv", "examples.csv", "class_flow.csv", "self_influence.csv"}
    assert (out["tables"] / "summary.md").read_text(encoding="utf-8") == out["summary"].read_text(encoding="utf-8")
    (given["evidence"] / "evidence.json").unlink()
    del given["benchmark"]
    stage.run(**given, **out)
    assert "No evidence was given" in out["report"].read_text(encoding="utf-8")


def test_the_stage_keeps_the_page_and_its_tables_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = report_helpers.write(report_helpers.material(), tmp_path / "in")
    stage.run(**given, **{name: tmp_path / name for name in ("report", "summary", "tables")})
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("whence").experiment_id])
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"prompts.json", "examples.json", "class_flow.json", "report"} <= kept
    inside = {item.path for item in client.list_artifacts(run.info.run_id, "report")}
    assert {"report/report.html", "report/summary.md", "report/self_influence.csv"} <= inside


def test_evidence_of_other_scores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = report_helpers.evidence().model_copy(update={"fingerprints": {"factors": "0" * 64}})
    given = report_helpers.write(report_helpers.material(evidence=other), tmp_path / "in")
    with pytest.raises(DataError, match=r"is of another factors \(000000000000\.\.\.\) than the scores"):
        stage.run(**given, **{name: tmp_path / name for name in ("report", "summary", "tables")})


def test_scores_of_other_training_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    material = report_helpers.material()
    given = report_helpers.write(replace(material, origin={**material.origin, "train_data": "0" * 64}), tmp_path / "in")
    with pytest.raises(DataError, match="are of other training data"):
        stage.run(**given, **{name: tmp_path / name for name in ("report", "summary", "tables")})
