"""The evidence of a run: what was measured of its attributions, beside which baselines, and the grade in words.

Needs no torch, so that whoever shows it needs none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whence.errors import DataError
from whence.estimates import Estimate

Method = Literal["influence", "bm25", "gradient_cosine", "embedding", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_NAMES: dict[Method, str] = {
    "influence": "influence",
    "bm25": "BM25",
    "gradient_cosine": "gradient cosine",
    "embedding": "embeddings",
    "random": "random",
}
Word = Literal["strong", "moderate", "weak", "none", "not measured"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measure(_Frozen):
    """One measure of every method that it was taken of; ``influence`` is the method that is judged.

    ``explanation`` says in a sentence or two what the number means and names the source.
    """

    name: str
    title: str
    explanation: str
    higher_is_better: bool
    methods: dict[Method, Estimate]


class Criterion(_Frozen):
    """A threshold the grade hangs on, and whether it was reached; None where its measure was not taken."""

    measure: str
    sentence: str
    passed: bool | None


class Grade(_Frozen):
    """The grade in one word and one sentence, with all that it hangs on."""

    word: Word
    sentence: str
    criteria: list[Criterion]


class NotMeasured(_Frozen):
    """A measure that was not taken, and why."""

    name: str
    why: str


class Evidence(_Frozen):
    """``evidence.json``: the grade, what it is derived from, what was not measured, and what it all belongs to."""

    grade: Grade
    measures: list[Measure]
    not_measured: list[NotMeasured]
    settings: dict[str, Any] = Field(default_factory=dict)
    fingerprints: dict[str, str] = Field(default_factory=dict)

    def measure(self, name: str) -> Measure | None:
        """The measure of that name; None if it was not taken."""
        return next((measure for measure in self.measures if measure.name == name), None)

    def write(self, path: Path) -> None:
        """Write ``evidence.json``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """Read it back.

        Raises:
            DataError: the file is missing, or not what :meth:`write` writes.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path} is not the evidence of a run ({error})", hint="run `whence validate` again"
            ) from error
