"""What a reviewer sees in MLflow's own pages, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import chromium
from mlflow_server import MlflowProcess

from whence.config import Config
from whence.tracking import stage_run

SECONDS = 120_000  # in milliseconds: MLflow's pages are large


def test_the_view_has_the_columns_that_matter_and_the_description_leads_to_the_report(
    server: MlflowProcess, make_config: Callable[..., Config], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "pages")
    (folder / "page").write_text("<h1>Which example was it?</h1>")
    with stage_run(make_config({"tracking.uri": server.uri, "tracking.experiment": "pages"}), "report") as run:
        run.log_parent_metrics({"finetuned.accuracy": 0.75, "another": 1.0})
        run.set_parent_tags({"whence.evidence": "strong"})
        run.log_artifact(folder / "page", name="report.html", parent=True)
        run.describe(f"**Evidence: strong** · [The report]({run.pipeline_path}/artifacts/report.html)")
    experiment = server.client.get_experiment_by_name("pages")
    assert experiment is not None
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 2400, "height": 900})
        page.set_default_timeout(SECONDS)
        view = f"{server.uri}/#/experiments/{experiment.experiment_id}/runs"
        page.goto(f"{view}?viewStateShareKey=whence&workflowType=machine_learning")
        page.get_by_role("columnheader").get_by_text("finetuned.accuracy").wait_for()
        headers = " ".join(page.get_by_role("columnheader").all_inner_texts())
        assert "another" not in headers
        page.get_by_text("Pipeline runs, with the columns that matter").wait_for()
        page.get_by_role("link", name="custom").first.click()
        page.locator("strong", has_text="Evidence: strong").wait_for()
        assert "<!--" not in page.inner_text("body")
        report = page.get_by_role("link", name="The report").get_attribute("href")  # it opens in another tab
        page.goto("about:blank")
        page.goto(f"{server.uri}/{report}")
        page.frame_locator("iframe").get_by_role("heading", name="Which example was it?").wait_for()
