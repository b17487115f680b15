"""The HTTP interface and the page. Nothing is written, so that any number of copies can run side by side."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from anyio import CancelScope
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from whence.config.serving import Serving
from whence.errors import ResourceError, WhenceError
from whence.report.base import render
from whence.serving.events import (
    LONGEST_TEXT,
    Done,
    Event,
    Example,
    Explanation,
    Failed,
    Question,
    Queued,
)

logger = logging.getLogger(__name__)

LINES = "application/x-ndjson"


class Answers(Protocol):
    """A model with its index, loaded."""

    profile: str
    title: str
    facts: dict[str, str]
    example: str
    chats: bool

    def explain(self, question: Question) -> Generator[Event]:
        """The pieces of the answer, the answer, and its rows, first estimated and then exact."""
        ...

    def open(self, example_id: str) -> Example | None:
        """A training example in full; None where there is none of this id."""
        ...


class Full(Exception):
    """As many are waiting as may; ``seconds`` says when to come back."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the service is busy; try again in {seconds:.0f} s")
        self.seconds = seconds


class Queue:
    """A queue of questions, to be used from one event loop.

    Args:
        waiting: questions that may wait; more are to be refused.

    Attributes:
        inside: questions that are answered or wait.
        turn: held by the one that is answered.
    """

    def __init__(self, waiting: int) -> None:
        self.turn, self._waiting = asyncio.Lock(), waiting
        self.inside = 0
        self._usual = 1.0  # seconds of a question, a moving average

    @property
    def seconds(self) -> float:
        """About how long all of them take."""
        return self.inside * self._usual

    def require_room(self) -> None:
        """Raises:
        Full: no one more may wait.
        """
        if self.inside > self._waiting:
            raise Full(self.seconds)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, until it is left; then comes the ``turn``."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def took(self, seconds: float) -> None:
        """Learn how long a question took."""
        self._usual += 0.2 * (seconds - self._usual)


def create_app(explainer: Callable[[], Answers | None], settings: Serving) -> FastAPI:
    """The service.

    Args:
        explainer: the one to use now; None while none is loaded, when the service is alive and not ready.
    """
    app = FastAPIOffline(
        title="Whence", summary="Ask a fine-tuned model, and see the training examples behind its answer."
    )
    queue = Queue(settings.waiting)
    metrics = CollectorRegistry()
    asked = Histogram("whence_question_seconds", "Questions that were answered, by time.", registry=metrics)
    Gauge("whence_questions", "Questions being answered or waiting.", registry=metrics).set_function(
        lambda: queue.inside
    )

    def ready() -> Answers:
        found = explainer()
        if found is None:
            raise HTTPException(503, "the model is being loaded", {"Retry-After": "10"})
        return found

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        found = ready()
        return render(
            "ask.html", ["cards.js", "ask.js"], connects=True, profile=found.profile, title=found.title,
            facts=list(found.facts.items()), example=found.example, longest=LONGEST_TEXT, chats=found.chats,
        )  # fmt: skip

    @app.post("/api/ask", responses={200: {"content": {LINES: {}}}, 503: {"description": "Busy, or still loading."}})
    async def ask(question: Question, request: Request) -> Explanation:
        """Answer a question and explain the answer.

        With `Accept: application/x-ndjson` one JSON object a line, as soon as it is known: `queued`, `token`, `answer`,
        `base`, `rows` (estimated, exact, and exact among all candidates), `done` or `error`. Otherwise all of it in the
        end.
        """
        found = ready()
        try:
            queue.require_room()
        except Full as full:
            raise HTTPException(503, str(full), {"Retry-After": str(int(full.seconds) + 1)}) from full
        events = _served(found, question, queue, settings.seconds, asked)
        if LINES in request.headers.get("accept", ""):
            return StreamingResponse(_lines(events), media_type=LINES)  # type: ignore[return-value]
        return await _collected(question, events)

    @app.get("/api/examples/{example_id:path}")
    def open_example(example_id: str) -> Example:
        """A training example, its nearest ones, and the run's questions that it had influence on."""
        found = ready().open(example_id)
        if found is None:
            raise HTTPException(404, f"there is no training example {example_id!r}")
        return found

    @app.get("/healthz", include_in_schema=False)
    async def alive() -> str:
        return "ok"

    @app.get("/readyz", include_in_schema=False)
    async def is_ready() -> str:
        return ready().profile

    @app.get("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return app


async def _served(
    answers: Answers, question: Question, queue: Queue, limit: float, asked: Histogram
) -> AsyncIterator[Event]:
    """The events of a question in its turn, an error among them; the turn ends with them, also when nobody listens."""
    ahead, seconds = queue.inside, queue.seconds
    with queue.place():
        if ahead:
            yield Queued(ahead=ahead, seconds=seconds)
        async with queue.turn:
            started = time.monotonic()
            events = answers.explain(question)
            try:
                async for event in iterate_in_threadpool(events):
                    yield event
                    if time.monotonic() - started > limit:
                        raise ResourceError(f"this took longer than serving.seconds allows ({limit:g} s)")
                seconds = time.monotonic() - started
                asked.observe(seconds)
                queue.took(seconds)
                yield Done(seconds=seconds)
            except WhenceError as error:
                yield Failed(message=str(error))
            except Exception:
                name = uuid.uuid4().hex[:8]
                logger.exception("question %s failed", name)
                yield Failed(message=f"the service failed; its log says why under {name}")
            finally:
                with CancelScope(shield=True):  # whoever asked may be gone; the model must be at rest for the next
                    await run_in_threadpool(events.close)


async def _lines(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    async for event in events:
        yield event.model_dump_json() + "\n"


async def _collected(question: Question, events: AsyncIterator[Event]) -> Explanation:
    last: dict[str, Any] = {}
    async for event in events:
        if isinstance(event, Failed):
            raise HTTPException(422, event.message)
        last[event.event] = event
    return Explanation(
        question=question.question,
        answer=last["answer"],
        base=last.get("base"),
        rows=last["rows"],
        seconds=last["done"].seconds,
    )
