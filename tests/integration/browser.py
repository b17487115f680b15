"""A headless Chromium from the system, driven by Playwright; tests that need it are skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from absent import absent

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright, the package")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        absent("chromium, the browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS.split())
        try:
            yield browser
        finally:
            browser.close()
