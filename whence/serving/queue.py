"""Who is served when: as many questions at once as the machine bears, the others in the order they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Full(Exception):
    """As many are waiting as may; ``seconds`` says when to come back."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the service is busy; try again in {seconds:.0f} s")
        self.seconds = seconds


class Queue:
    """A queue of questions, to be used from one event loop.

    Args:
        at_once: questions that are worked on together.
        waiting: those that may wait; more are to be refused.

    Attributes:
        inside: questions that are worked on or wait.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._at_once, self._most = at_once, at_once + waiting
        self.inside = 0
        self._usual = 1.0  # seconds of a question, a moving average

    @property
    def ahead(self) -> int:
        """How many have to end before the next one begins."""
        return max(0, self.inside - self._at_once + 1)

    @property
    def seconds(self) -> float:
        """About how long that takes."""
        return self.ahead * self._usual / self._at_once

    def require_room(self) -> None:
        """Raises:
        Full: no one more may wait.
        """
        if self.inside >= self._most:
            raise Full(self.seconds)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, until it is left; see :meth:`turn`."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it is this question's turn."""
        async with self._turns:
            started = time.monotonic()
            yield
            self._usual += 0.2 * (time.monotonic() - started - self._usual)
