"""What all sections of the settings are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Page = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A part of the YAML: unknown keys are refused and values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
