"""The service as programs see it: events in order, turns in a queue, refusals that say what to do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from whence.config.serving import Serving
from whence.errors import DataError
from whence.serving.app import LINES, create_app
from whence.serving.events import Answer, BaseAnswer, Event, Example, Question, Row, Rows, Token

ROW = Row(end="helpful", rank=1, id="e1", label=None, source=None, pieces=["a", "b"], completion="b", score=1.0,
          z_score=3.0, standing="the most helpful of 2", overlap_rank=None, influence_rank=1)  # fmt: skip


class Echo:
    """Answers with the question, and notes how many questions are answered at the same time."""

    profile, title, example, chats = "test", "What a test learned", "Why?", False

    def __init__(self) -> None:
        self.facts = {"Model": "<b>echo</b>"}
        self.inside, self.most, self.lock = 0, 0, threading.Lock()
        self.longest, self.go_on = 30.0, threading.Event()  # seconds
        self.go_on.set()

    def explain(self, question: Question) -> Generator[Event]:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            if question.question == "refuse":
                raise DataError("there is nothing to explain; ask something else")
            if question.question == "break":
                raise RuntimeError("token hf_secret")
            yield Token(text=question.question)
            self.go_on.wait(self.longest)
            yield Answer(text=question.question, ended="end of text")
            if question.base:
                yield BaseAnswer(text="base")
            for exact in (False, True):
                yield Rows(exact=exact, count=2, stands_out=True, in_words="", evidence="", rows=[ROW])
        finally:
            with self.lock:
                self.inside -= 1

    def open(self, example_id: str) -> Example | None:
        if example_id != "a/b":
            return None
        return Example(id="a/b", label=None, source=None, prompt="p", completion="c", nearest=[], influences=[])


@pytest.fixture
def echo() -> Echo:
    return Echo()


def client_of(echo: Echo | None, **settings: Any) -> TestClient:
    return TestClient(create_app(lambda: echo, Serving(**settings)))


def events_of(client: TestClient, question: str, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/api/ask", json={"question": question, **more}, headers={"Accept": LINES})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_events_come_as_they_are_known_and_all_of_it_at_once_when_no_stream_is_accepted(echo: Echo) -> None:
    client = client_of(echo)
    assert [event["event"] for event in events_of(client, "hello", base=True)] == [
        "token", "answer", "base", "rows", "rows", "done",
    ]  # fmt: skip
    whole = client.post("/api/ask", json={"question": "hello"}).json()
    assert whole["answer"]["text"] == "hello"
    assert whole["rows"]["exact"], "the exact rows replace the estimated ones"
    assert whole["rows"]["rows"][0]["id"] == "e1"


def test_faults_are_told_without_what_only_the_log_may_hold(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(echo)
    assert events_of(client, "refuse")[-1] == {
        "event": "error", "message": "there is nothing to explain; ask something else"
    }  # fmt: skip
    broken = events_of(client, "break")[-1]
    assert broken["event"] == "error"
    assert "hf_secret" not in broken["message"]
    assert broken["message"].split()[-1] in caplog.text
    assert client.post("/api/ask", json={"question": "refuse"}).status_code == 422
    assert client.post("/api/ask", json={"question": ""}).status_code == 422
    assert client.post("/api/ask", json={"question": "x", "row": 3}).status_code == 422, "no unknown fields"
    assert client.post("/api/ask", json={"question": "x" * 8001}).status_code == 422


def test_questions_take_turns_and_too_many_are_told_when_to_come_back(echo: Echo) -> None:
    echo.go_on.clear()
    with client_of(echo, waiting=2) as client, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(events_of, client, f"q{number}") for number in range(3)]
        deadline = time.monotonic() + 30
        while "whence_questions 3.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline
        refused = client.post("/api/ask", json={"question": "one more"})
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        echo.go_on.set()
        answers = [future.result() for future in asked]
    assert echo.most == 1
    assert sorted(events[-1]["event"] for events in answers) == ["done"] * 3
    assert sum(events[0]["event"] == "queued" for events in answers) == 2


def test_a_question_that_takes_too_long_ends(echo: Echo) -> None:
    echo.go_on.clear()
    echo.longest = 0.2
    last = events_of(client_of(echo, seconds=0.1), "slow")[-1]
    assert last["event"] == "error"
    assert "serving.seconds" in last["message"]


def test_it_is_alive_and_not_ready_while_the_model_is_loaded(echo: Echo) -> None:
    client = client_of(None)
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == client.get("/").status_code == 503
    assert client_of(echo).get("/readyz").json() == "test"


def test_the_page_and_the_interface_ask_no_other_server_for_anything(echo: Echo) -> None:
    client = client_of(echo)
    page = client.get("/").text
    assert "&lt;b&gt;echo&lt;/b&gt;" in page
    assert "connect-src 'self'" in page
    assert "https://" not in client.get("/docs").text
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    assert {"/api/ask", "/api/examples/{example_id}"} <= client.get("/openapi.json").json()["paths"].keys()


def test_an_example_is_opened_by_any_id_it_may_have(echo: Echo) -> None:
    client = client_of(echo)
    assert client.get("/api/examples/a%2Fb").json()["prompt"] == "p"
    assert client.get("/api/examples/other").status_code == 404
