"""In a real browser, inside the iframe Kubeflow shows HTML in: pages look as meant and nothing in them runs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import pandas as pd
import pytest
from browser import chromium
from matplotlib.figure import Figure

from whence.report.page import Section, Table, page

HOSTILE = [
    "<script>parent.postMessage('ran', '*')</script>",
    "<img src=x onerror=\"parent.postMessage('ran', '*')\">",
    "</td></table></div><iframe srcdoc=\"<script>parent.parent.postMessage('ran', '*')</script>\"></iframe>",
    "<svg onload=\"parent.postMessage('ran', '*')\">",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def document() -> str:
    figure = Figure()
    figure.subplots().plot([1, 2])
    table = Table(pd.DataFrame({"prompt": HOSTILE, "score": [0.5] * len(HOSTILE)}), "Prompts")
    return page("A page", [Section("A part", figures=[("A line", figure)], tables=[table])])


def shown_in_kubeflow(browser: Any, html: str, **context: Any) -> tuple[Any, list[str], list[str]]:
    """The frame that shows ``html``, the messages its scripts sent out, and what it asked the network for."""
    window = browser.new_page(**context)
    requests: list[str] = []
    window.on("request", lambda request: requests.append(request.url))
    outer = "<script>window.got = []; addEventListener('message', event => got.push(event.data))</script>"
    window.set_content(f'{outer}<iframe sandbox="allow-scripts" width=900 height=700 srcdoc="{escape(html)}"></iframe>')
    frame = window.frames[1]
    frame.wait_for_load_state("load")
    window.wait_for_timeout(200)
    return frame, window.evaluate("got"), [url for url in requests if not url.startswith("data:")]


def test_the_way_of_looking_for_scripts_would_find_one(browser: Any) -> None:
    _, messages, _ = shown_in_kubeflow(browser, "<body>" + HOSTILE[0])
    assert messages == ["ran"]


def test_nothing_in_the_data_runs_or_asks_the_network(browser: Any, document: str) -> None:
    frame, messages, requests = shown_in_kubeflow(browser, document)
    assert messages == []
    assert not [url for url in requests if not url.startswith("about:")]
    assert frame.eval_on_selector_all("td.text", "cells => cells.map(cell => cell.textContent)") == HOSTILE


def test_the_policy_stops_a_script_even_if_one_came_through(browser: Any, document: str) -> None:
    _, messages, _ = shown_in_kubeflow(browser, document.replace("<body>", "<body>" + HOSTILE[0]))
    assert messages == []


def test_figures_and_styles_are_shown_although_nothing_is_loaded(browser: Any, document: str) -> None:
    frame, _, _ = shown_in_kubeflow(browser, document)
    assert frame.eval_on_selector("img", "image => image.complete && image.naturalWidth") > 300
    assert frame.eval_on_selector("table", "table => getComputedStyle(table).borderCollapse") == "collapse"


@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 25, 29)")])
def test_the_page_follows_the_readers_colour_scheme(browser: Any, document: str, scheme: str, background: str) -> None:
    window = browser.new_page(color_scheme=scheme)
    window.set_content(document)
    assert window.eval_on_selector("body", "body => getComputedStyle(body).backgroundColor") == background


def test_a_narrow_window_scrolls_the_table_and_not_the_page(browser: Any, document: str) -> None:
    window = browser.new_page(viewport={"width": 380, "height": 700})
    window.set_content(document)
    assert window.evaluate("document.documentElement.scrollWidth") <= 380
