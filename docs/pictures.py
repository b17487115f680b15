"""Take the README's pictures from the last run in ``whence-output/``: ``make demo pictures`` (needs Chromium)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

RUN = Path("whence-output/latest").resolve()
FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 1280, 800  # pixels
CARDS = 2  # of each end of the ranking
MODULE = "model.layers.2.mlp.gate_proj"


def main() -> None:
    """Write ``report.png`` (the first screen), ``answer.png`` (one answer's examples) and ``spectra.png``."""
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
        browser.close()


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
