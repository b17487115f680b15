"""Settings of the service that answers questions."""

from __future__ import annotations

from pydantic import Field

from whence.config.base import Positive, Section


class Serving(Section):
    at_once: Positive = Field(1, description="Questions that are answered at the same time by one copy of the service.")
    waiting: int = Field(20, ge=0, description="Questions that may wait their turn; more are told when to come back.")
    seconds: float = Field(60, gt=0, description="Longest time for a question, but for a single step of the model.")
    follow_seconds: float = Field(
        30, gt=0, description="How often the service looks whether another model has become the champion."
    )
