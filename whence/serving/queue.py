"""Who is served when: one question at a time, in the order they came. More copies of the service serve more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


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
