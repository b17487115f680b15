"""DeepEval's MMLU benchmark on our models: letters ranked by log-probability, in batches.

DeepEval drives (its loop, its prompt, its scorer). Changed here, through its own extension points: questions also come
from a folder; the solved examples shown are those of the question's own subject (DeepEval keeps the first subject's for
all); a prompt that is too long loses solved examples instead of failing; batches hold questions of like lengths.

Hendrycks et al., "Measuring Massive Multitask Language Understanding", ICLR 2021.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from transformers import PreTrainedModel

from whence.config import Config
from whence.data.tokenization import answer_ids
from whence.errors import DataError
from whence.evaluation.decoding import completion_logprobs, continue_prompts, read_prompts
from whence.evaluation.questions import HUB, LETTERS, benchmark_name, check_questions, read_questions, read_shots
from whence.models.language import LanguageModel

# Read when deepeval is imported: nothing is sent home, and neither .env nor .deepeval of the current folder is read.
os.environ["DEEPEVAL_TELEMETRY_OPT_OUT"] = "1"
os.environ["DEEPEVAL_DISABLE_DOTENV"] = "1"
os.environ["DEEPEVAL_DISABLE_LEGACY_KEYFILE"] = "1"

from deepeval.benchmarks.mmlu.mmlu import MMLU
from deepeval.benchmarks.mmlu.template import MMLUTemplate
from deepeval.benchmarks.schema import MultipleChoiceSchema
from deepeval.dataset import Golden
from deepeval.models import DeepEvalBaseLLM

_FIRST_LETTER = re.compile(r"\W*([A-D])\b")


@dataclass(frozen=True)
class MmluResult:
    """Accuracy of one model.

    ``summary`` is JSON-able: ``benchmark`` (mmlu only for its own subjects), ``model_id, method, n_shots, source,
    accuracy`` (over all questions), ``questions``, ``tasks`` (accuracy and questions per subject), ``with_fewer_shots``
    and ``shortened`` (questions that did not fit with all, or without any solved examples), ``unanswered``.
    ``predictions`` has one row per question; ``metrics`` maps names like ``mmlu.finetuned.accuracy`` to values.
    """

    summary: dict[str, Any]
    predictions: pd.DataFrame
    metrics: dict[str, float]


def evaluate_mmlu(language: LanguageModel, model_id: str) -> MmluResult:
    """Answer the questions of ``evaluation.mmlu.tasks``.

    Raises:
        ConfigError: a subject the source does not have.
        DataError: questions cannot be read, or not be had from the hub.
    """
    config, settings = language.config, language.config.evaluation.mmlu
    check_questions(settings)
    benchmark = SubjectBenchmark(config)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints everything under MMLU's name, whatever the questions
        benchmark.evaluate(Answerer(language, model_id), batch_size=config.evaluation.batch_size)
    order = {task: number for number, task in enumerate(settings.tasks)}
    predictions = pd.DataFrame(benchmark.rows)
    predictions.insert(0, "model_id", model_id)
    predictions = predictions.sort_values(["task", "number"], key=lambda c: c.map(order) if c.name == "task" else c)
    return _result(predictions.reset_index(drop=True), config, model_id)


@dataclass(frozen=True)
class Subject:
    """Stands in for DeepEval's enumeration of subjects, of which only ``value`` is used."""

    value: str


class LetterAnswer(MultipleChoiceSchema):
    """An answer as DeepEval expects it, with what it rests on; ``answer`` is empty when none was recognised."""

    answer: Literal["A", "B", "C", "D", ""]
    logprobs: dict[str, float] = Field(default_factory=dict)
    text: str | None = None
    shortened: bool = False


class Answerer(DeepEvalBaseLLM):
    """A causal language model as DeepEval sees one."""

    def __init__(self, language: LanguageModel, model_id: str) -> None:
        self.language, self.tokenizer, self.config = language, language.tokenizer, language.config
        config = language.config
        self.letters = [answer_ids(language.tokenizer, letter)[:-1] for letter in LETTERS]  # without the end of text
        by_letter = config.evaluation.mmlu.method == "logprob"
        answer_room = max(map(len, self.letters)) if by_letter else config.generation.max_new_tokens
        self.room = config.general.max_length - answer_room
        super().__init__(model_id)

    def load_model(self) -> PreTrainedModel:
        """The model, which is loaded already."""
        return self.language.model

    def get_model_name(self) -> str:
        """The model's id."""
        return str(self.name)

    def generate(self, prompt: str, schema: type | None = None) -> LetterAnswer:
        """The answer to one prompt."""
        return self.batch_generate([prompt])[0]

    async def a_generate(self, prompt: str, schema: type | None = None) -> LetterAnswer:
        """The same; there is nothing to wait for."""
        return self.generate(prompt, schema)

    def batch_generate(self, prompts: Sequence[str], schemas: Sequence[type] | None = None) -> list[LetterAnswer]:
        """Answers to a batch of prompts; one longer than the room for it loses its beginning."""
        token_ids = [self._token_ids(prompt) for prompt in prompts]
        shortened = [len(ids) > self.room for ids in token_ids]
        prefix = read_prompts(self.language, [self._cut(ids) for ids in token_ids])
        if self.config.evaluation.mmlu.method == "logprob":
            ranks = completion_logprobs(self.language, prefix, self.letters)
            return [
                LetterAnswer(
                    answer=LETTERS[int(row.argmax())],
                    logprobs=dict(zip(LETTERS, row.tolist(), strict=True)),
                    shortened=was_cut,
                )
                for row, was_cut in zip(ranks, shortened, strict=True)
            ]
        greedy = self.config.generation.model_copy(update={"do_sample": False})
        generated = continue_prompts(self.language, prefix, greedy)
        texts = [self.language.decode(answer.text_ids) for answer in generated]
        return [
            LetterAnswer(answer=first_letter(text), text=text, shortened=was_cut)
            for text, was_cut in zip(texts, shortened, strict=True)
        ]

    def fits(self, prompt: str) -> bool:
        """Whether prompt and answer fit into ``general.max_length``."""
        return len(self._token_ids(prompt)) <= self.room

    def _token_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]
        return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.room:
            return ids
        start = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return start + ids[len(ids) - self.room + len(start) :]


class SubjectBenchmark(MMLU):
    """DeepEval's benchmark with each subject's own solved examples; ``rows`` collects one record per question."""

    def __init__(self, config: Config) -> None:
        self.settings = config.evaluation.mmlu
        self.rows: list[dict[str, Any]] = []
        super().__init__(tasks=[Subject(task) for task in self.settings.tasks], n_shots=self.settings.n_shots)

    def load_benchmark_dataset(self, task: Subject) -> list[Golden]:
        """The questions of a subject, longest first; sets ``shots_dataset`` to the subject's own solved examples."""
        if self.settings.source == HUB:
            goldens = self._from_hub(task)
        else:
            count = self.settings.n_shots
            self.shots_dataset = read_shots(self.settings.source, task.value, count) if count else []
            goldens = [
                Golden(
                    input=MMLUTemplate.format_question(question, include_answer=False),
                    expected_output=LETTERS[question["answer"]],
                )
                for question in read_questions(self.settings.source, task.value, "test")
            ]
        goldens = goldens[: self.settings.max_questions]
        for number, golden in enumerate(goldens, start=1):
            golden.additional_metadata = {"number": number}
        return sorted(goldens, key=lambda golden: -len(golden.input))

    def batch_predict(self, model: Answerer, task: Subject, goldens: list[Golden]) -> list[dict[str, Any]]:
        """Predictions and scores as DeepEval wants them, one per question."""
        prompts, shots = zip(*(self._prompt(model, task, golden) for golden in goldens), strict=True)
        answers = model.batch_generate(list(prompts))
        results = []
        for golden, answer, shown in zip(goldens, answers, shots, strict=True):
            score = self.scorer.exact_match_score(golden.expected_output, answer.answer)
            results.append({"prediction": answer.answer, "score": score})
            self.rows.append(
                {
                    "task": task.value,
                    "number": golden.additional_metadata["number"],
                    "question": golden.input,
                    "prediction": answer.answer,
                    "expected": golden.expected_output,
                    "correct": bool(score),
                    "shots": shown,
                    "shortened": answer.shortened,
                    "text": answer.text,
                    **{f"logprob_{letter}": answer.logprobs.get(letter) for letter in LETTERS},
                }
            )
        return results

    def _prompt(self, model: Answerer, task: Subject, golden: Golden) -> tuple[str, int]:
        """The prompt with as many solved examples as fit, dropped from the front, and their number."""
        for count in range(self.n_shots, -1, -1):
            shots = self.shots_dataset[len(self.shots_dataset) - count :]
            prompt = MMLUTemplate.generate_output(golden.input, shots, task, count)
            if count == 0 or model.fits(prompt):
                break
        return prompt, count

    def _from_hub(self, task: Subject) -> list[Golden]:
        self.shots_dataset = []  # makes DeepEval read them again, for this subject
        try:
            goldens: list[Golden] = super().load_benchmark_dataset(task)
        except Exception as error:  # the hub client raises whatever its transport does
            raise DataError(
                f"cannot load the questions of {task.value} (cais/mmlu) from the Hugging Face hub: {error}",
                hint="set evaluation.mmlu.source to a folder with the CSV files of MMLU, or evaluation.mmlu.enabled "
                "to false",
            ) from error
        self.shots_dataset = self.shots_dataset[: self.n_shots]
        return goldens


def first_letter(answer: str) -> str:
    """The letter an answer begins with (``B``, ``(B)``, ``B. because``), or nothing."""
    letter = _FIRST_LETTER.match(answer)
    return letter[1] if letter else ""


def _result(predictions: pd.DataFrame, config: Config, model_id: str) -> MmluResult:
    settings, name = config.evaluation.mmlu, benchmark_name(config.evaluation.mmlu)
    tasks = {
        str(task): {"accuracy": float(rows["correct"].mean()), "questions": len(rows)}
        for task, rows in predictions.groupby("task", sort=False)
    }
    accuracy = float(predictions["correct"].mean())
    summary = {
        "benchmark": name,
        "model_id": model_id,
        "method": settings.method,
        "n_shots": settings.n_shots,
        "source": settings.source,
        "accuracy": accuracy,
        "questions": len(predictions),
        "tasks": tasks,
        "with_fewer_shots": int((predictions["shots"] < settings.n_shots).sum()),
        "shortened": int(predictions["shortened"].sum()),
        "unanswered": int((predictions["prediction"] == "").sum()),
    }
    role = "base" if model_id == config.models.base.id else "finetuned"
    metrics = {f"{name}.{role}.accuracy": accuracy}
    metrics |= {f"{name}.{role}.{task}": figures["accuracy"] for task, figures in tasks.items()}
    return MmluResult(summary, predictions, metrics)
