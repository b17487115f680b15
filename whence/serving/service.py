"""A run that answers questions over HTTP: what is asked of it, in the words of the interface."""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain

from whence.asking import Answer as Asked
from whence.asking import Asking
from whence.data.chat import to_text
from whence.errors import DataError
from whence.evaluation.generation import stream_answer
from whence.report.words import covered, number, visible
from whence.run_folder import RunFolder
from whence.serving.events import LONGEST_TEXT, Answer, BaseAnswer, Event, Example, Question, Token, Turn
from whence.serving.rows import RowWriter


class Service:
    """A run, loaded; answers one question at a time.

    Attributes:
        profile, title, facts, example: what people see of it, and a question that it can be asked.
        chats: whether it was trained on conversations.
    """

    def __init__(self, run: RunFolder) -> None:
        """Load what is needed.

        Raises:
            DataError: the run has no index.
            FactorError: model, factors and index do not belong together.
        """
        self._asking = Asking(run)
        config, data = self._asking.language.config, self._asking.index.data
        self._run = run
        self._writer = RowWriter(self._asking.language, data.frame, run)
        grade = run.grade
        self._evidence = grade.sentence if grade else "How far influences can be trusted was not measured in this run."
        self.profile, self.chats = config.profile, config.dataset.chats
        self.title = f"What {config.models.base.name} learned from {config.dataset.name}"
        self.facts = {
            "Fine-tuned model": config.models.finetuned.id,
            "Training examples": number(len(data.frame)),
            "Influence over": covered(self._asking.explainer.info.coverage.model_dump()),
            "Evidence": grade.word.capitalize() if grade else "Not measured",
        }
        self.example = data.frame["prompt"].iloc[0][:LONGEST_TEXT]

    def explain(self, question: Question) -> Generator[Event]:
        """The answer piece by piece, then the rows behind it: estimated, exact, and last with all candidates exact.

        Raises:
            DataError: question and answer do not fit, the answer is empty, or has not the words asked about.
        """
        answer: Asked | None = None
        for piece in self._asking.stream(self._prompt(question), question.answer, question.as_input):
            if isinstance(piece, str):
                yield Token(text=visible(piece))
            else:
                answer = piece
        assert answer is not None
        yield Answer(text=visible(answer.text), ended=answer.ended or "given")
        if question.base:
            yield BaseAnswer(text=visible(self._base_answer(answer.prompt)))
        if question.about:
            answer = self._asking.about(answer, question.about)
        found = self._asking.first(answer)
        for rows in chain([found], self._asking.exact(found, question.rows)):
            yield self._writer.rows(rows, question.rows, self._evidence)

    def _prompt(self, question: Question) -> str:
        if not question.before:
            return question.question
        if not self.chats or question.as_input:
            raise DataError("a conversation is for a model that was trained on such, and is no input of a template")
        asked = Turn(role="user", content=question.question)
        return to_text([turn.model_dump() for turn in [*question.before, asked]])

    def open(self, example_id: str) -> Example | None:
        """A training example in full; None where there is none of this id."""
        return self._writer.open(example_id)

    def _base_answer(self, prompt: str) -> str:
        *_, answer = stream_answer(self._run.base, prompt)  # loaded when it is first asked
        assert not isinstance(answer, str)
        return answer.text
