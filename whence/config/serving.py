"""Settings of the service that answers questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whence.config.base import Page, Section


class Serving(Section):
    url: Page | None = Field(
        None, description="Where people open the service; the report links there with its questions. null: no links."
    )
    waiting: int = Field(
        20, ge=0, description="Questions that may wait while another is answered; more are told when to come back."
    )
    seconds: float = Field(60, gt=0, description="Longest time for a question, but for a single step of the model.")
    follow_seconds: float = Field(
        30, gt=0, description="How often the service looks whether another model has become the champion."
    )
    factors_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision in which eigenvectors and lambda are held; bfloat16 takes half the memory, and scores "
        "are off by some parts in a thousand.",
    )
    hold_factors: bool | None = Field(
        None,
        description="Hold the factors of all modules in memory; false reads them module by module for every question; "
        "null: hold them where they fit.",
    )
