"""Take the README's pictures from the last run in ``whence-output/``: ``make demo pictures`` (needs Chromium)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

RUN = Path("whence-output/latest").resolve()
FOLDER = Path(__file__).parent
WIDTH = 1080  # pixels


def main() -> None:
    """Write ``answer.png`` (one prompt and the examples behind it) and ``spectra.png`` (one module's lambda)."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        sys.exit("no chromium or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        for page, heading, picture in (
            ("comparison", "fact-orvid", "answer"),
            ("spectra", "model.layers.2.mlp.gate_proj", "spectra"),
        ):
            tab.goto((RUN / f"{page}.html").as_uri())
            tab.locator("section", has=tab.get_by_role("heading", name=heading, exact=True)).screenshot(
                path=FOLDER / f"{picture}.png"
            )
        browser.close()


if __name__ == "__main__":
    main()
