"""What goes in and out of the service, as its OpenAPI page describes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

LONGEST_TEXT = 8000  # characters of a question or an answer
LONGEST_TALK = 100  # turns
End = Literal["helpful", "harmful", "overlap"]


class Turn(BaseModel, extra="forbid"):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=LONGEST_TEXT)


class Question(BaseModel, extra="forbid"):
    """What is asked of the service."""

    question: str = Field(min_length=1, max_length=LONGEST_TEXT, description="The prompt as the model is to read it.")
    before: list[Turn] = Field(
        [], max_length=LONGEST_TALK, description="The conversation so far, where the model was trained on such."
    )
    answer: str | None = Field(
        None,
        max_length=LONGEST_TEXT,
        description="Explain this answer; without it the model generates its own.",
    )
    about: str | None = Field(
        None, min_length=1, max_length=LONGEST_TEXT, description="Explain only these words of the answer."
    )
    as_input: bool = Field(False, description="The question is a text for `dataset.template`, as training rows are.")
    rows: int = Field(10, ge=1, le=100, description="Training examples of each end.")
    base: bool = Field(False, description="The base model's answer beside.")


class Row(BaseModel):
    """A training example behind an answer.

    ``parts`` are the shares of its ``pieces`` in the score, empty in an estimate; ``influence_rank`` is null beyond the
    candidates of the index. Rows of word overlap have no score.
    """

    end: End
    rank: int
    id: str
    label: str | None
    source: str | None
    pieces: list[str]
    completion: str
    score: float | None
    z_score: float | None
    standing: str
    overlap_rank: int | None
    influence_rank: int | None
    parts: list[float] = []
    layers: list[float] | None = None
    kinds: list[float] | None = None
    turns: list[float] = Field([], description="Shares of the assistant's turns, where a conversation has several.")


class Queued(BaseModel):
    """Others are before this question."""

    event: Literal["queued"] = "queued"
    ahead: int
    seconds: float = Field(description="About how long they take.")


class Token(BaseModel):
    """The next piece of the answer."""

    event: Literal["token"] = "token"
    text: str


class Answer(BaseModel):
    """The whole answer."""

    event: Literal["answer"] = "answer"
    text: str
    ended: Literal["end of text", "cut off", "empty", "given"]


class BaseAnswer(BaseModel):
    """The base model's answer to the same question."""

    event: Literal["base"] = "base"
    text: str


class Rows(BaseModel):
    """The training examples behind the answer, in place of those before: estimated, then ``exact``.

    Exact ones come twice where the index has more candidates: ranked among themselves, and then among all of these.
    """

    event: Literal["rows"] = "rows"
    exact: bool
    count: int = Field(description="All training examples.")
    stands_out: bool = Field(description="Whether any of them has more influence than chance gives.")
    in_words: str
    evidence: str = Field(description="How far influences can be trusted, by the run's evidence.")
    layers: list[str] = []
    kinds: list[str] = []
    rows: list[Row]


class Done(BaseModel):
    """Nothing follows."""

    event: Literal["done"] = "done"
    seconds: float


class Failed(BaseModel):
    """The question could not be answered; nothing follows."""

    event: Literal["error"] = "error"
    message: str


Event = Annotated[Queued | Token | Answer | BaseAnswer | Rows | Done | Failed, Field(discriminator="event")]


class Explanation(BaseModel):
    """All of it in one piece."""

    question: str
    answer: Answer
    base: BaseAnswer | None = None
    rows: Rows
    seconds: float


class Near(BaseModel):
    """A training example that is like another one."""

    id: str
    similarity: float = Field(description="Cosine of their words' weights (TF-IDF), 1 for the same words.")
    text: str


class Influenced(BaseModel):
    """A question of the run that a training example had influence on."""

    id: str
    prompt: str
    z_score: float


class Example(BaseModel):
    """A training example in full."""

    id: str
    label: str | None
    source: str | None
    prompt: str
    completion: str
    nearest: list[Near]
    influences: list[Influenced]
