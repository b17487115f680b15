"""The report in a real browser, as people use it: by mouse, by keyboard, on a phone, and in Kubeflow's frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_helpers
from axe import axe_source
from browser import chromium

from whence.report.report import LARGEST, report
from whence.report.words import visible

QUERIES = 6
HOSTILE = [
    "<script>parent.postMessage('ran', '*'); document.title = 'ran'</script>",
    "</script><script>document.title = 'ran'</script>",
    "<img src=x onerror=\"document.title = 'ran'\">",
    "<!--<script>",
    "a\u202eb \ud800 😀 שלום",
    "long " * 20_000,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def material() -> Any:
    made = report_helpers.material(queries=QUERIES, examples=40, top_k=8)
    texts = [
        f"Prompt number {number} about {word}." for number, word in enumerate("light yarn acid steel ink glass".split())
    ]
    answers = made.answers.assign(prompt=[*texts, "Nobody knows this"])
    return replace(made, answers=answers)


@pytest.fixture(scope="module")
def page_file(material: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report(material).html, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report (or another file) in a new window; in the end nothing may have failed or asked the network."""
    faults: list[str] = []
    windows = []

    def start(fragment: str = "", file: Path = page_file, **context: Any) -> Any:
        window = browser.new_page(**context)
        windows.append(window)
        watch(window, faults)
        window.goto(file.as_uri() + fragment)
        return window

    yield start
    for window in windows:
        window.close()
    assert faults == []


def watch(window: Any, faults: list[str]) -> None:
    """Note what fails in the window, and what it asks the network for."""
    kinds = ("error", "warning")
    window.on("console", lambda message: faults.append(message.text) if message.type in kinds else None)
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)


def shown(window: Any) -> list[str]:
    """Names of the entries that are shown, in their order."""
    return window.eval_on_selector_all(
        ".entry", "all => all.filter(e => e.offsetParent !== null).map(e => e.dataset.name)"
    )


def test_the_page_opens_with_its_headlines_and_all_answers_closed(opened: Callable[..., Any]) -> None:
    window = opened()
    assert window.title() == "What builtin:tiny-llama learned from builtin:demo"
    assert window.locator(".word").inner_text() == "Weak evidence"
    assert window.locator("details.entry").count() == QUERIES + 1
    assert window.locator("details.entry[open]").count() == 0


def test_search_looks_into_prompts_answers_and_examples(opened: Callable[..., Any], material: Any) -> None:
    window = opened()
    window.get_by_label("Search").fill("ACID number")
    assert shown(window) == ["q2"]
    assert window.locator("#found").inner_text() == "1 of 7 answers"
    window.get_by_label("Search").fill("something else")
    assert shown(window) == [f"q{QUERIES - 1}"]
    listed = material.influences.groupby("example_id")["query_id"].agg(set)
    example_id, wanted = next((name, found) for name, found in listed.items() if len(found) < 3)
    window.get_by_label("Search").fill(example_id)
    assert set(shown(window)) == wanted
    window.get_by_label("Search").fill("no such thing anywhere")
    assert shown(window) == []
    assert window.locator("#nothing").is_visible()
    window.get_by_label("Search").fill("")
    assert len(shown(window)) == QUERIES + 1


def test_answers_are_sorted_as_asked_for(opened: Callable[..., Any], material: Any) -> None:
    window = opened()
    first = material.influences.query("rank == 1").set_index(["direction", "query_id"])["z_score"]
    for name, wanted in (
        ("strongest helpful example", first["helpful"].sort_values(ascending=False).index.tolist()),
        ("strongest harmful example", first["harmful"].sort_values().index.tolist()),
        ("order asked", [f"q{number}" for number in range(QUERIES)]),
    ):
        window.get_by_label("Sort by").select_option(name)
        assert [entry for entry in shown(window) if entry != "unscored"] == wanted
    window.get_by_label("Sort by").select_option("wrong answers first")
    assert shown(window)[0] == f"q{QUERIES - 1}"


def test_an_opened_answer_shows_its_examples_and_word_overlap_beside_them(
    opened: Callable[..., Any], material: Any
) -> None:
    window = opened()
    window.locator("#prompt-q2 > summary").click()
    entry = window.locator("#prompt-q2")
    wanted = material.influences.query("query_id == 'q2' and direction == 'helpful'")
    cards = entry.locator(".card.helpful")
    assert cards.count() == 5
    first = cards.first.inner_text()
    assert "The most helpful of 40" in first
    assert wanted["example_id"].iloc[0] in first
    assert f"z +{wanted['z_score'].iloc[0]:.2f}".rstrip("0") in first
    assert entry.locator(".card.overlap").count() == 5
    assert entry.locator("svg[role=img]").first.get_attribute("aria-label") == "by layer: layer 0 50 %, layer 1 50 %"
    entry.get_by_role("button", name="Show all 8").first.click()
    assert cards.count() == 8
    assert window.evaluate("document.activeElement.closest('.card') !== null"), "the keyboard goes on at the new ones"


def test_a_word_under_the_pointer_says_its_part_of_the_influence(opened: Callable[..., Any], material: Any) -> None:
    window = opened()
    window.locator("#prompt-q0 > summary").click()
    card = window.locator("#prompt-q0 .card.helpful").first
    found = material.tokens.query("query_id == 'q0'").iloc[0]
    word = card.locator(".token", has_text="light").first
    word.hover()
    place = list(found["pieces"]).index(" light")
    said = card.locator(".readout").inner_text()
    assert said.startswith("“light” before “and”: ")
    value = float(said.partition(": ")[2].partition(",")[0].replace("−", "-"))
    assert value == pytest.approx(found["scores"][place], rel=0.02, abs=float(np.abs(found["scores"]).max()) / 1000)
    assert "more" in str(word.get_attribute("class")) or "less" in str(word.get_attribute("class"))
    assert word.evaluate("e => getComputedStyle(e).borderBottomStyle") in ("solid", "dashed")


def test_the_keyboard_opens_an_answer_and_goes_through_its_words(opened: Callable[..., Any]) -> None:
    window = opened()
    window.locator("#prompt-q0 > summary").focus()
    window.keyboard.press("Enter")
    card = window.locator("#prompt-q0 .card.helpful").first
    card.wait_for()
    window.keyboard.press("Tab")  # the link to this answer
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.classList.contains('tokens')")
    window.keyboard.press("Home")
    words = card.locator(".token")
    assert card.locator(".token.active").count() == 1
    before = card.locator(".readout").inner_text()
    window.keyboard.press("ArrowRight")
    window.keyboard.press("ArrowRight")
    assert words.nth(2).evaluate("e => e.classList.contains('active')")
    assert card.locator(".readout").inner_text() != before
    window.keyboard.press("End")
    assert words.last.evaluate("e => e.classList.contains('active')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_reader_until_the_button_says_otherwise(opened: Callable[..., Any], scheme: str) -> None:
    window = opened(color_scheme=scheme)
    colours = {"light": "rgb(250, 249, 246)", "dark": "rgb(20, 23, 26)"}
    background = "getComputedStyle(document.body).backgroundColor"
    assert window.evaluate(background) == colours[scheme]
    window.get_by_role("button", name="Dark").click()
    other = "light" if scheme == "dark" else "dark"
    assert window.evaluate(background) == colours[other]
    assert window.get_by_role("button", name="Dark").get_attribute("aria-pressed") == str(other == "dark").lower()
    window.reload()
    assert window.evaluate(background) == colours[other], "remembered where there is storage"


def test_a_link_to_an_answer_opens_it(opened: Callable[..., Any]) -> None:
    window = opened("#prompt-q4")
    assert window.locator("details.entry[open]").evaluate_all("all => all.map(e => e.dataset.name)") == ["q4"]
    assert window.locator("#prompt-q4 .card").count() > 5
    assert window.locator("#prompt-q4 > summary").evaluate("e => e.getBoundingClientRect().top") < 200
    window.evaluate("location.hash = '#prompt-q1'")
    window.locator("#prompt-q1[open] .card").first.wait_for()
    window.locator("#prompt-q1 .permalink").click()
    assert window.url.endswith("#prompt-q1")


def in_kubeflow(browser: Any, html: str) -> tuple[Any, list[str], list[str]]:
    """The frame Kubeflow shows HTML in, what failed, and what its scripts told the page around it."""
    window = browser.new_page()
    faults: list[str] = []
    watch(window, faults)
    outer = "<script>window.got = []; addEventListener('message', event => got.push(event.data))</script>"
    window.set_content(
        f'{outer}<iframe sandbox="allow-scripts" width=1000 height=700 srcdoc="{escape(html)}"></iframe>'
    )
    frame = window.frames[1]
    frame.wait_for_load_state("load")
    return frame, faults, window.evaluate("got")


def test_the_page_works_in_kubeflow_s_frame_without_storage_or_address(browser: Any, page_file: Path) -> None:
    frame, faults, _ = in_kubeflow(browser, page_file.read_text(encoding="utf-8"))
    frame.locator("nav a", has_text="Answers").click()
    frame.locator("#prompt-q3 > summary").click()
    frame.locator("#prompt-q3 .card.helpful").first.wait_for()
    frame.get_by_role("button", name="Dark").click()
    assert frame.evaluate("document.documentElement.dataset.theme") == "dark"
    frame.locator("#prompt-q3 .permalink").click()
    assert frame.locator("#prompt-q3[open]").count() == 1
    frame.get_by_label("Search").fill("steel")
    assert frame.locator(".entry:visible").count() == 1
    assert faults == []


def test_a_fragment_in_the_address_of_a_frame_opens_the_answer(browser: Any, page_file: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer.html"
    address = escape(page_file.as_uri())
    outer.write_text(f'<iframe sandbox="allow-scripts" width=900 height=700 src="{address}#prompt-q2"></iframe>')
    window = browser.new_page()
    window.goto(outer.as_uri())
    window.frames[1].locator("#prompt-q2[open] .card").first.wait_for()


def test_nothing_in_the_data_runs_or_asks_the_network(browser: Any) -> None:
    made = report_helpers.material(texts=HOSTILE)
    frame, faults, messages = in_kubeflow(browser, report(made).html)
    for entry in frame.locator(".entry").all():
        entry.locator("summary").first.click()
    for button in frame.locator(".show-all").all():
        button.click()
    frame.page.wait_for_timeout(200)
    assert messages == []
    assert frame.page.evaluate("got") == []
    assert frame.evaluate("document.title") == "What builtin:tiny-llama learned from builtin:demo"
    texts = frame.eval_on_selector_all(".card .text", "all => all.map(e => e.textContent)")
    for text in HOSTILE[:5]:
        assert any(found.startswith(visible(text)) for found in texts), text
    assert faults == []


def test_a_phone_scrolls_down_and_never_sideways(opened: Callable[..., Any]) -> None:
    window = opened("#prompt-q0", viewport={"width": 360, "height": 740})
    window.locator("#method details summary").click()
    assert window.evaluate("document.documentElement.scrollWidth") <= 360
    assert window.locator("#prompt-q0 .card").first.evaluate("e => e.getBoundingClientRect().right") <= 360


def test_a_long_word_does_not_widen_a_phone_s_page(browser: Any) -> None:
    window = browser.new_page(viewport={"width": 360, "height": 740})
    window.set_content(report(report_helpers.material(texts=["x" * 3000, "y" * 3000])).html)
    window.locator(".entry > summary").first.click()
    assert window.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_model_of_many_layers_fits_a_phone(browser: Any, material: Any) -> None:
    one = material.modules[(material.modules["layer"] == 0)]
    deep = pd.concat([one.assign(layer=layer) for layer in range(32)], ignore_index=True)
    window = browser.new_page(viewport={"width": 360, "height": 740})
    window.set_content(report(replace(material, modules=deep)).html)
    window.locator(".entry > summary").first.click()
    assert window.locator(".card rect").count() > 32 * 5
    assert window.evaluate("document.documentElement.scrollWidth") <= 360
    assert window.locator(".card svg").first.evaluate("e => e.getBoundingClientRect().right") <= 340


def test_printed_all_answers_are_open_and_closed_again_afterwards(opened: Callable[..., Any]) -> None:
    window = opened()
    window.evaluate("dispatchEvent(new Event('beforeprint'))")
    window.emulate_media(media="print")
    assert window.locator("details.entry[open]").count() == QUERIES + 1
    assert window.locator(".tools").is_hidden()
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    window.evaluate("dispatchEvent(new Event('afterprint'))")
    assert window.locator("details.entry[open]").count() == 0


def test_without_a_script_everything_but_the_cards_can_be_read(browser: Any, page_file: Path) -> None:
    window = browser.new_context(java_script_enabled=False).new_page()
    window.goto(page_file.as_uri())
    window.locator("#prompt-q0 > summary").click()
    text = window.locator("#prompt-q0 .body").inner_text()
    assert "The most helpful of 40" in text
    assert "light and yarn" in text
    assert window.locator(".tools").is_hidden()


def test_the_csv_in_the_page_is_the_one_kept_with_the_run(opened: Callable[..., Any], material: Any) -> None:
    window = opened()
    with window.expect_download() as download:
        window.get_by_role("link", name="as CSV").click()
    assert download.value.suggested_filename == "self_influence.csv"
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 41
    assert lines[1].split(",")[:3] == ["1", "39.0", "train-039"]


def serious_faults(window: Any) -> list[tuple[str, str]]:
    """What axe-core finds that keeps people from reading or using the page: rule and element."""
    window.evaluate(axe_source() + "; 0")
    found = window.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 20, "it did look"
    return [
        (fault["id"], node["html"][:160])
        for fault in found["violations"]
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_axe_finds_nothing_that_keeps_people_out(opened: Callable[..., Any], scheme: str, width: int) -> None:
    window = opened("#prompt-q0", color_scheme=scheme, viewport={"width": width, "height": 900})
    window.locator("#prompt-q0 .card.harmful").first.wait_for()
    window.evaluate("document.querySelectorAll('details.more').forEach(e => { e.open = true; })")
    assert serious_faults(window) == []


def test_axe_would_find_a_fault(opened: Callable[..., Any]) -> None:
    window = opened()
    window.evaluate("document.querySelector('img').removeAttribute('alt')")
    assert [rule for rule, _ in serious_faults(window)] == ["image-alt"]


def test_a_hundred_prompts_with_forty_examples_each_stay_below_five_megabytes(
    opened: Callable[..., Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(2000)]
    texts = [" ".join(rng.choice(words, 150)) for _ in range(4000)]
    made = report(report_helpers.material(queries=100, examples=4000, top_k=20, texts=texts))
    assert len(made.html.encode("utf-8")) < LARGEST == 5_000_000
    assert made.left_out == []
    file = tmp_path / "large.html"
    file.write_text(made.html, encoding="utf-8")
    window = opened("#prompt-q99", file=file)
    window.locator("#prompt-q99").get_by_role("button", name="Show all 20").first.click()
    assert window.locator("#prompt-q99 .card.helpful").count() == 20
