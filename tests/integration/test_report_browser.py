"""The small pages in a real browser, inside the iframe Kubeflow shows HTML in: they look as meant and nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_helpers
from axe import axe_source
from browser import chromium

from whence.influence.spectra import Spectrum
from whence.report.pages import loss_curve_page, spectra_page

HOSTILE = [
    "<script>parent.postMessage('ran', '*')</script>",
    "<img src=x onerror=\"parent.postMessage('ran', '*')\">",
    "</h2></section><iframe srcdoc=\"<script>parent.parent.postMessage('ran', '*')</script>\"></iframe>",
    "<svg onload=\"parent.postMessage('ran', '*')\">",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def loss_curve() -> str:
    history = [{"step": float(step), "loss": 10.0 / step, "learning_rate": 1e-3 / step} for step in range(10, 300, 10)]
    history += [{"step": float(step), "eval_loss": 12.0 / step} for step in (100, 200)]
    return loss_curve_page(history, {"train_loss": 0.1, "eval_loss": 0.06})


def spectra() -> str:
    random = np.random.default_rng(0)
    names = [*HOSTILE, "model.layers.2.mlp.gate_proj"]
    modules = [Spectrum(name, random.gamma(0.2, size=(30, 50)).astype(np.float32)) for name in names]
    pictures = {f"{name}.lambda": report_helpers.png() for name in names} | {"all_layers": report_helpers.png()}
    table = pd.concat([report_helpers.spectra().iloc[[0]].assign(module=name) for name in names])
    return spectra_page(table, modules, pictures, 2, report_helpers.COVERAGE)


PAGES = pytest.mark.parametrize("document", [loss_curve(), spectra()], ids=["loss", "spectra"])


def shown_in_kubeflow(browser: Any, html: str, **context: Any) -> tuple[Any, list[str], list[str]]:
    """The frame that shows ``html``, the messages its scripts sent out, and what it asked the network for."""
    window = browser.new_page(**context)
    requests: list[str] = []
    window.on("request", lambda request: requests.append(request.url))
    outer = "<script>window.got = []; addEventListener('message', event => got.push(event.data))</script>"
    window.set_content(f'{outer}<iframe sandbox="allow-scripts" width=900 height=600 srcdoc="{escape(html)}"></iframe>')
    frame = window.frames[1]
    frame.wait_for_load_state("load")
    window.wait_for_timeout(200)
    return frame, window.evaluate("got"), [url for url in requests if not url.startswith(("data:", "about:"))]


def test_the_way_of_looking_for_scripts_would_find_one(browser: Any) -> None:
    _, messages, _ = shown_in_kubeflow(browser, "<body>" + HOSTILE[0])
    assert messages == ["ran"]


@PAGES
def test_nothing_in_the_data_runs_or_asks_the_network(browser: Any, document: str) -> None:
    _, messages, requests = shown_in_kubeflow(browser, document)
    assert (messages, requests) == ([], [])


def test_names_of_modules_are_shown_as_they_are(browser: Any) -> None:
    frame, _, _ = shown_in_kubeflow(browser, spectra())
    titles = frame.eval_on_selector_all("h2", "titles => titles.map(title => title.textContent)")
    assert titles[1 : 1 + len(HOSTILE)] == HOSTILE


@PAGES
def test_the_policy_stops_a_script_even_if_one_came_through(browser: Any, document: str) -> None:
    _, messages, _ = shown_in_kubeflow(browser, document.replace("<body>", "<body>" + HOSTILE[0]))
    assert messages == []


def test_pictures_and_charts_are_shown_although_nothing_is_loaded(browser: Any) -> None:
    frame, _, _ = shown_in_kubeflow(browser, spectra())
    assert frame.eval_on_selector_all("img", "all => all.every(image => image.complete && image.naturalWidth > 100)")
    assert frame.eval_on_selector(".line-0 polyline", "line => getComputedStyle(line).stroke") == "rgb(11, 99, 165)"


def test_the_loss_curve_fits_the_frame(browser: Any) -> None:
    frame, _, _ = shown_in_kubeflow(browser, loss_curve())
    assert frame.locator(".chart").first.evaluate("chart => chart.getBoundingClientRect().bottom") < 600


@PAGES
@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(250, 249, 246)"), ("dark", "rgb(20, 23, 26)")])
def test_a_page_follows_the_reader_s_colours_and_keeps_nobody_out(
    browser: Any, document: str, scheme: str, background: str
) -> None:
    window = browser.new_page(color_scheme=scheme)
    window.set_content(document)
    assert window.eval_on_selector("body", "body => getComputedStyle(body).backgroundColor") == background
    window.evaluate(axe_source() + "; 0")
    found = window.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 15, "it did look"
    assert [fault["id"] for fault in found["violations"] if fault["impact"] in ("serious", "critical")] == []


@PAGES
def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Any, document: str) -> None:
    window = browser.new_page(viewport={"width": 380, "height": 700})
    window.set_content(document)
    for details in window.locator("details summary").all():
        details.click()
    assert window.evaluate("document.documentElement.scrollWidth") <= 380
