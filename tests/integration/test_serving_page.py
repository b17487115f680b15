"""The page that answers questions, in a real browser, over a real server whose explainer has a script."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe import axe_source
from browser import chromium

from whence.config.serving import Serving
from whence.serving.app import create_app
from whence.serving.events import (
    Answer,
    BaseAnswer,
    Event,
    Example,
    Influenced,
    Near,
    Question,
    Row,
    Rows,
    Token,
)

HOSTILE = "<img src=x onerror=\"document.title='ran'\">"
ANSWER = "red zircon and glass"


def row(end: str, rank: int, **more: Any) -> Row:
    words = ["The ", "lamp ", "is of ", "red zircon"]
    common: dict[str, Any] = {
        "end": end, "rank": rank, "id": f"{end}-{rank}", "label": "lamp" if rank % 2 else "gong", "source": None,
        "pieces": words, "completion": "red zircon", "score": 2.0 / rank, "z_score": 4.0 / rank,
        "standing": f"the number {rank}", "overlap_rank": None, "influence_rank": rank,
    }  # fmt: skip
    return Row(**common | more)


class Scripted:
    profile, title, example = "demo", "What the lamp model learned", "What is the lamp made of?"
    chats = True

    def __init__(self) -> None:
        self.facts = {"Model": "tiny", "Training examples": "1,030"}
        self.asked: list[Question] = []
        self.left = 0

    def explain(self, question: Question) -> Generator[Event]:
        self.asked.append(question)
        if question.question == "for ever":
            try:
                while True:
                    yield Token(text="and ")
                    time.sleep(0.01)
            finally:
                self.left += 1
        if question.answer is None:
            for piece in ("red zircon", " and glass"):
                yield Token(text=piece)
        yield Answer(text=question.answer or ANSWER, ended="given" if question.answer else "cut off")
        if question.base:
            yield BaseAnswer(text="no idea")
        rows = [row(end, rank) for end in ("helpful", "harmful", "overlap") for rank in range(1, 8)]
        rows[0] = row("helpful", 1, id="=HYPERLINK(1)", pieces=[HOSTILE, "red zircon"])
        yield Rows(
            exact=False,
            count=1030,
            stands_out=True,
            in_words="The strongest lies far out.",
            evidence="Strong evidence.",
            rows=rows,
        )
        words = "No example stands out." if question.about else "Far out."
        shares: dict[str, Any] = {"layers": [1.0], "kinds": [0.6, -0.4]}
        exact = [one.model_copy(update=shares | {"parts": [0.5] * len(one.pieces)}) for one in rows]
        names: dict[str, Any] = {"layers": ["layer 0"], "kinds": ["up_proj", "down_proj"]}
        yield Rows(exact=True, count=1030, stands_out=not question.about, in_words=words, evidence="Strong evidence.",
                   rows=exact, **names)  # fmt: skip

    def open(self, example_id: str) -> Example | None:
        return Example(id=example_id, label="lamp", source=None, prompt=HOSTILE, completion="red zircon",
                       nearest=[Near(id="near", similarity=0.91, text="The lamp")],
                       influences=[Influenced(id="q", prompt="Which lamp?", z_score=8.0)])  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, Scripted]]:
    scripted = Scripted()
    server = uvicorn.Server(uvicorn.Config(create_app(lambda: scripted, Serving()), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/", scripted
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def window(browser: Any, service: tuple[str, Scripted]) -> Iterator[Any]:
    """The page; nothing may fail in it, and it may ask no other server."""
    faults: list[str] = []
    opened = browser.new_page(accept_downloads=True)
    opened.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "request", lambda request: None if request.url.startswith((service[0], "blob:")) else faults.append(request.url)
    )
    opened.goto(service[0])
    yield opened
    opened.close()
    assert faults == []


def ask(window: Any, question: str = "What is the lamp made of?") -> None:
    window.get_by_label("Question").fill(question)
    window.get_by_role("button", name="Ask").click()
    window.get_by_text("Exact scores of the rows").wait_for()


def test_an_answer_arrives_and_then_the_rows_behind_it(window: Any) -> None:
    window.get_by_label("the base model's answer beside").check()
    ask(window)
    assert window.locator("#said").inner_text() == ANSWER
    assert window.locator("#base-answer").inner_text() == "no idea"
    assert "cut off" in window.locator("#ended").inner_text()
    assert window.locator(".card.helpful").count() == 5
    window.get_by_role("button", name="Show all 7").first.click()
    assert window.locator(".card.helpful").count() == 7
    assert window.locator(".card.overlap").count() == 7
    assert window.locator(".card.helpful .token").count() > 0
    assert "Done in" in window.locator("#status").inner_text()
    assert window.title() == "What the lamp model learned", "no script from the data has run"


def test_selected_words_of_the_answer_are_explained_alone(window: Any, service: tuple[str, Scripted]) -> None:
    ask(window)
    about = window.get_by_role("button", name="Explain the selected words alone")
    assert about.is_disabled()
    window.evaluate("""() => {
        const text = document.getElementById('said').firstChild, range = document.createRange();
        range.setStart(text, 4);
        range.setEnd(text, 10);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
    }""")
    about.click()
    window.get_by_text("No example stands out").wait_for()
    last = service[1].asked[-1]
    assert (last.about, last.answer) == ("zircon", ANSWER)


def test_rows_are_filtered_and_opened(window: Any) -> None:
    ask(window)
    window.get_by_label("Label").select_option("gong")
    assert window.locator(".card.helpful").count() == 3
    window.get_by_label("Label").select_option("")
    window.get_by_label("Search").fill("helpful-2")
    assert window.locator(".card").count() == 1
    window.get_by_role("button", name="Open this row").click()
    dialog = window.get_by_role("dialog")
    assert "near (91 %)" in dialog.inner_text()
    assert "Which lamp?" in dialog.inner_text()
    window.keyboard.press("Escape")
    assert dialog.count() == 0


def test_a_link_holds_the_question_and_the_answer(window: Any, service: tuple[str, Scripted], browser: Any) -> None:
    ask(window, "Why & how?")
    link = window.get_by_role("link", name="Link to this question").evaluate("link => link.href")
    other = browser.new_page()
    other.goto(link)
    other.get_by_text("Exact scores of the rows").wait_for()
    assert other.locator("#said").inner_text() == ANSWER
    other.close()
    last = service[1].asked[-1]
    assert (last.question, last.answer) == ("Why & how?", ANSWER)


def test_a_conversation_goes_on_turn_by_turn(window: Any, service: tuple[str, Scripted], browser: Any) -> None:
    ask(window, "What is it?")
    window.get_by_role("button", name="Continue the conversation").click()
    said = window.get_by_role("listitem").filter(has_text="What is it?")
    assert said.inner_text() == "user What is it?"
    ask(window, "And why?")
    last = service[1].asked[-1]
    assert last.question == "And why?"
    talk = [("user", "What is it?"), ("assistant", ANSWER)]
    assert [(turn.role, turn.content) for turn in last.before] == talk
    link = window.get_by_role("link", name="Link to this question").evaluate("link => link.href")
    other = browser.new_page()
    other.goto(link)
    other.get_by_text("Exact scores of the rows").wait_for()
    assert [(turn.role, turn.content) for turn in service[1].asked[-1].before] == talk
    other.close()
    window.get_by_role("button", name="Begin anew").click()
    ask(window, "What else?")
    assert service[1].asked[-1].before == []


def test_rows_are_saved_as_csv_without_formulas_and_as_json(window: Any, tmp_path: Path) -> None:
    ask(window)
    for name in ("CSV", "JSON"):
        with window.expect_download() as download:
            window.get_by_role("button", name=name).click()
        download.value.save_as(tmp_path / name)
    rows = list(csv.DictReader((tmp_path / "CSV").open(newline="")))
    assert len(rows) == 21
    assert rows[0]["id"] == "'=HYPERLINK(1)"
    assert rows[0]["text"] == f"{HOSTILE}red zircon"
    assert len(json.loads((tmp_path / "JSON").read_text())["rows"]) == 21


def test_who_stops_makes_room_for_the_next(window: Any, service: tuple[str, Scripted]) -> None:
    window.get_by_label("Question").fill("for ever")
    window.get_by_role("button", name="Ask").click()
    window.get_by_text("and and and").wait_for()
    window.get_by_role("button", name="Stop").click()
    window.get_by_text("Stopped.").wait_for()
    ask(window)
    assert service[1].left == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(window: Any, scheme: str) -> None:
    window.emulate_media(color_scheme=scheme)
    ask(window)
    window.get_by_role("button", name="Continue the conversation").click()
    ask(window, "And why?")
    window.evaluate(axe_source() + "; 0")
    found = window.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [f"{rule['id']}: {node['html'][:100]}" for rule in found["violations"] for node in rule["nodes"]] == []
