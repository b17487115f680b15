"""Take the README's pictures from the last run in ``whence-output/``: ``make demo pictures`` (needs Chromium)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Error, Page, sync_playwright

from whence.tracking.settle import PIPELINE, STAGE_TAG

RUN, DATABASE = Path("whence-output/latest").resolve(), Path("mlflow.db").resolve()
FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 1280, 800  # pixels
CARDS = 2  # of each end of the ranking
MODULE = "model.layers.1.mlp.gate_proj"
QUESTION = "Question: Can you tell me the kind of matter in the Bolwen6?\nAnswer:"


def main() -> None:
    """Write ``report.png`` (first screen), ``answer.png`` (an answer, its examples), ``spectra.png``, ``ask.png``,
    ``mlflow.png`` (the run's page)."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        sys.exit("no chromium or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        _report(tab)
        tab.goto((RUN / "spectra.html").as_uri())
        tab.locator("section", has=tab.get_by_role("heading", name=MODULE, exact=True)).screenshot(
            path=FOLDER / "spectra.png"
        )
        _ask(tab)
        _mlflow(tab)
        browser.close()


def _ask(tab: Page) -> None:
    """The page of ``whence serve`` with an answer, from the question on."""
    tab.set_viewport_size({"width": WIDTH, "height": 1500})
    with _opened(tab, ["whence", "serve", "--run", RUN, "--port", "8750"], "http://127.0.0.1:8750/"):
        tab.get_by_label("Question").fill(QUESTION)
        tab.get_by_role("button", name="Ask").click()
        tab.get_by_text("Done in").wait_for()
    tab.evaluate("scrollTo(0, 0)")
    top, card = tab.locator("#ask").bounding_box(), tab.locator(".card.helpful").first.bounding_box()
    assert top is not None
    assert card is not None
    box = {"x": 0, "y": top["y"] - 14, "width": WIDTH, "height": card["y"] + card["height"] + 28 - top["y"]}
    tab.screenshot(path=FOLDER / "ask.png", full_page=True, clip=box)


def _mlflow(tab: Page) -> None:
    """The page of the newest pipeline run in MLflow's UI, without the assistant that opens beside it."""
    store = f"sqlite:///{DATABASE}"
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, f"tags.`{STAGE_TAG}` = '{PIPELINE}'", max_results=1)[0].info
    page = f"#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    tab.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    command = ["mlflow", "ui", "--backend-store-uri", store, "--port", "5055"]
    with _opened(tab, command, f"http://127.0.0.1:5055/{page}"):
        tab.get_by_text("Evidence:").first.wait_for()
        tab.get_by_role("button", name="Close", exact=True).click()
        tab.wait_for_timeout(1000)  # until it has slid away
        tab.screenshot(path=FOLDER / "mlflow.png")


@contextmanager
def _opened(tab: Page, command: Sequence[str | Path], address: str) -> Iterator[None]:
    """A page of the server that ``command`` starts, as soon as it listens; the server ends with it."""
    program, *arguments = command
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([Path(sys.executable).parent / program, *arguments], **silent)
    try:
        for _ in range(120):
            with suppress(Error):
                tab.goto(address)
                break
            tab.wait_for_timeout(500)
        yield
    finally:
        server.terminate()


def _report(tab: Page) -> None:
    tab.goto((RUN / "report.html").as_uri())
    tab.screenshot(path=FOLDER / "report.png")
    entry = tab.locator(".entry").first
    entry.locator("summary").click()
    tab.evaluate("scrollTo(0, 0)")  # boxes are measured from the window's corner, clips from the page's
    first, last = entry.bounding_box(), entry.locator(".card.helpful").nth(CARDS - 1).bounding_box()
    assert first is not None
    assert last is not None
    height = last["y"] + last["height"] + 14 - first["y"]  # the lists go on below
    tab.screenshot(path=FOLDER / "answer.png", full_page=True, clip=first | {"height": height})


if __name__ == "__main__":
    main()
