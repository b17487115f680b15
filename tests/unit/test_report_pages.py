"""The small pages of stages: one self-contained file without a script, and what they show of the numbers."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import report_helpers
from test_report_document import Reader

from whence.influence.spectra import Spectrum
from whence.report.pages import loss_curve_page, spectra_page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</h2></section><iframe src='https://example.com'>",
    "{{ 7 * 7 }} {% raw %}",
    "<!--",
    "&lt;script&gt;",
    "a\u202eb \ud800",
]
HISTORY = [
    {"step": 10.0, "loss": 2.0, "learning_rate": 1e-4},
    {"step": 20.0, "eval_loss": 1.9},
    {"step": 20.0, "loss": 1.0, "learning_rate": 5e-5},
    {"step": 20.0, "train_loss": 1.5},
]


def spectra_of(name: str, matrix: np.ndarray) -> str:
    pictures = {"all_layers": report_helpers.png(), f"{name}.lambda": report_helpers.png()}
    table = report_helpers.spectra().assign(
        module=pd.Series([f"{name}{end}" for end in ("", ".b", ".c", ".d")], dtype=object)
    )
    return spectra_page(table, [Spectrum(name, matrix.astype(np.float32))], pictures, 2, report_helpers.COVERAGE)


def test_the_spectra_say_what_share_of_the_model_they_are_of() -> None:
    assert "Over 25.0 % of the model's parameters, 50.0 % of its MLPs'." in Reader(spectra_of("a", np.eye(3))).text


def polylines(html: str) -> dict[str, list[list[tuple[float, float]]]]:
    """The lines of each chart, by what the chart says it shows."""
    charts = map(ElementTree.fromstring, re.findall("<svg.*?</svg>", html, re.DOTALL))
    return {
        str(chart.get("aria-label")): [
            [(float(x), float(y)) for x, y in (point.split(",") for point in str(line.get("points")).split())]
            for line in chart.iter()
            if line.tag.endswith("polyline")
        ]
        for chart in charts
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_the_data_stays_text_wherever_it_appears(text: str) -> None:
    page = spectra_of(text, np.ones((2, 3)))
    page.encode("utf-8")
    own = {tag for tag, _ in Reader(spectra_of("plain", np.ones((2, 3)))).elements}
    reader = Reader(page)
    assert {tag for tag, _ in reader.elements} <= own
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert len(reader.all("img")) == 2, "only our own pictures"
    assert re.sub("[\u202e\ud800]", "\ufffd", text) in reader.text


@pytest.mark.parametrize("page", [loss_curve_page(HISTORY, {"loss": 1.0}), spectra_of("up", np.ones((2, 3)))])
def test_a_page_needs_no_network_and_forbids_scripts(page: str) -> None:
    reader = Reader(page)
    [policy] = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert "script-src" not in rules
    assert not reader.all("script")
    assert not re.search(r"https?://|url\(|@import", page)
    for image in reader.all("img"):
        encoded = str(image["src"]).removeprefix("data:image/png;base64,")
        assert base64.b64decode(encoded, validate=True).startswith(b"\x89PNG")
        assert image["alt"]


def test_the_loss_curve_shows_training_and_evaluation_loss_and_the_learning_rate() -> None:
    page = loss_curve_page(HISTORY, {"train_loss": 1.5, "perplexity": 12345.678})
    charts = polylines(page)
    training, evaluation = charts["Loss while fine-tuning, over the optimizer's steps"]
    assert len(training) == 2
    assert len(evaluation) == 1
    assert training[0][0] < training[1][0] == evaluation[0][0]
    assert training[0][1] < evaluation[0][1] < training[1][1], "down is more"
    [rate] = charts["Learning rate over the optimizer's steps"]
    assert len(rate) == 2
    text = " ".join(Reader(page).text.split())
    for words in ("Fine-tuning", "Train loss1.5", "Perplexity12,346", "training evaluation"):
        assert words in text, words


def test_a_training_that_logged_nothing_says_so() -> None:
    page = loss_curve_page([], {"loss": float("nan"), "best": float("inf")})
    assert "No loss was logged." in page
    assert "Lossundefined Bestinfinite" in " ".join(Reader(page).text.split())


def test_spectra_are_shown_of_all_layers_and_of_each_module_of_one() -> None:
    page = spectra_of("model.layers.2.up", np.array([[4.0, 3.0], [2.0, 1.0]]))  # shares .4 .7 .9 1
    charts = polylines(page)
    assert len(charts["Lambda from largest to smallest"]) == 4, "a line per module"
    [falling] = charts["Sorted lambda of model.layers.2.up"]
    heights = np.diff([y for _, y in falling])
    wanted = np.diff(np.log([4.0, 3.0, 2.0, 1.0]))
    assert heights / heights.sum() == pytest.approx(wanted / wanted.sum(), abs=0.001)
    text = " ".join(Reader(page).text.split())
    for words in (
        "Spectra of all layers, and of layer 2 in full",
        "50%: 2 values (50.0 %)",
        "90%: 3 values (75.0 %)",
        "99%: 4 values (100.0 %)",
        "Held by the top 1 %40.0 %",
        "Spectra in numbers, 4 modules",
        "infinite",
    ):
        assert words in text, words


def test_values_more_than_twelve_decades_below_the_largest_do_not_stretch_the_scale() -> None:
    [line] = polylines(spectra_of("up", np.array([[1.0, 1e-3], [1e-30, 0.0]])))["Sorted lambda of up"]
    assert len(line) == 2


def test_large_spectra_are_drawn_with_few_points() -> None:
    charts = polylines(spectra_of("up", np.random.default_rng(0).random((500, 500))))
    assert max(len(line) for lines in charts.values() for line in lines) <= 400


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.full((2, 2), 3.0), np.array([[1e-38]])])
@pytest.mark.filterwarnings("error")
def test_degenerate_spectra_still_make_a_page(matrix: np.ndarray) -> None:
    page = spectra_of("up", matrix)
    assert len(Reader(page).all("img")) == 2
    assert not [
        point for lines in polylines(page).values() for line in lines for point in line if np.isnan(point).any()
    ]


def test_many_modules_are_drawn_as_the_middle_one_of_each_kind() -> None:
    table = pd.concat([report_helpers.spectra().assign(layer=layer) for layer in range(4)], ignore_index=True)
    page = spectra_page(table, [], {}, 0, report_helpers.COVERAGE)
    assert len(polylines(page)["Lambda from largest to smallest"]) == 2


def test_light_and_dark_readers_are_both_served() -> None:
    assert "prefers-color-scheme: dark" in loss_curve_page([], {})
