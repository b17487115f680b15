"""Pages are one self-contained file, show what they are given, and nothing in the data can break out of its cell."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from whence.report.page import MAX_CELL, Section, Table, page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table><iframe src='https://example.com'>",
    "{{ 7 * 7 }} {% raw %}",
    "<!--",
    "&lt;script&gt;",
]


class Reader(HTMLParser):
    """Collects what a browser would see: elements with attributes, and the text of each table cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "td":
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def table_of(*values: object) -> str:
    return page("t", [Section("s", tables=[Table(pd.DataFrame({"column": pd.Series(values, dtype=object)}))])])


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_the_data_stays_text_wherever_it_appears(text: str) -> None:
    frame = pd.DataFrame({text: [text]})
    section = Section(text, text=text, figures=[(text, Figure())], numbers={text: 1.0}, tables=[Table(frame, text)])
    reader = Reader(page(text, [section], text=text))
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in reader.elements}
    assert len(reader.all("img")) == 1, "only our own figure"
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert reader.cells == [text]


def test_the_page_needs_no_network_and_forbids_scripts() -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    html = page("t", [Section("s", figures=[("A rising line", figure)])])
    reader = Reader(html)
    [policy] = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not re.search(r"https?://|url\(|@import", html)
    [image] = reader.all("img")
    assert image["alt"] == "A rising line"
    encoded = (image["src"] or "").removeprefix("data:image/png;base64,")
    assert base64.b64decode(encoded, validate=True).startswith(b"\x89PNG")


def test_direction_marks_control_characters_and_surrogates_are_made_visible() -> None:
    html = table_of("ab\u202ecd", "x\u2066y", "\ud800", "nul\x00", "tab\tand\nline")
    assert Reader(html).cells == ["ab\ufffdcd", "x\ufffdy", "\ufffd", "nul\ufffd", "tab\tand\nline"]
    html.encode("utf-8")


def test_scripts_written_from_right_to_left_keep_their_text_and_find_their_direction() -> None:
    reader = Reader(table_of("שלום עולם", "مرحبا"))
    assert reader.cells == ["שלום עולם", "مرحبا"]
    assert all(cell.get("dir") == "auto" for cell in reader.all("td"))


def test_very_long_cells_are_cut_and_say_how_long_they_were() -> None:
    html = table_of("word " * 20_000)
    [cell] = Reader(html).cells
    assert cell.endswith("… (100,000 characters)")
    assert len(cell) < MAX_CELL + 50


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32(0.123456), "0.1235"),
        (-1234.5678, "-1235"),
        (3.0, "3"),
        (np.int64(1234567), "1,234,567"),
        (float("nan"), ""),
        (None, ""),
        (pd.NA, ""),
        (True, "True"),
        (float("inf"), "inf"),
        (1e-9, "1e-09"),
        ("", ""),
    ],
)
def test_values_are_shown_for_people(value: object, shown: str) -> None:
    assert Reader(table_of(value)).cells == [shown]


def test_sections_show_their_explanations_numbers_and_captions_in_order() -> None:
    sections = [
        Section("First", text="One.\n\nTwo.", numbers={"effective_rank": 12.5}),
        Section("Second", tables=[Table(pd.DataFrame({"prompt_id": ["p1"]}), "All prompts")]),
    ]
    reader = Reader(page("Spectra", sections, text="Introduction."))
    words = ["Spectra", "Introduction.", "First", "One.", "Two.", "effective rank", "12.5", "Second", "All prompts"]
    positions = [reader.text.rindex(word) for word in words]
    assert positions == sorted(positions)
    assert len(reader.all("p")) == 3
    assert "prompt id" in reader.text


def test_light_and_dark_readers_are_both_served() -> None:
    assert "prefers-color-scheme: dark" in page("t", [])
