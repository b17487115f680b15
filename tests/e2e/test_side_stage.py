"""A stage that a run can do without fails: the rest is done and reported, and the run has failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Folder
from mlflow import MlflowClient

# Questions of a hub that cannot be reached: what no check can tell beforehand.
FAILING = [
    "--set", "evaluation.mmlu.source=hub", "--set", "evaluation.mmlu.tasks=[virology]",
    "--set", "dataset.num_samples=40", "--set", "dataset.num_eval_samples=10", "--set", "training.num_train_epochs=1",
    "--set", "validation.measures=[]", "--set", "general.work_dir=null",
]  # fmt: skip


def test_a_run_whose_benchmark_fails_has_a_report_and_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = Folder(tmp_path)
    ended = folder.whence("run", "--profile", "demo", *FAILING)
    assert ended.returncode == 1
    printed = ended.stdout + ended.stderr
    assert "mmlu failed: cannot load the questions of virology" in printed
    assert "The report of everything else: whence-output/" in printed
    assert {name for name, state in folder.states().items() if state != "finished"} == {"mmlu", "report"}
    report = (folder.run / "report.html").read_text(encoding="utf-8")
    assert "This report is not the whole run." in report
    assert "mmlu failed: cannot load the questions of virology" in report
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("whence").experiment_id])
    failed = {run.info.run_name for run in runs if run.info.status == "FAILED"}
    assert {"mmlu", "report"} < failed
    assert len(failed) == 3, "those, and the run they are nested under"
