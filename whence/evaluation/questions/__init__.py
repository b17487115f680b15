"""Multiple-choice questions in Hendrycks' CSV layout, and the project's own small set for the demo.

The layout is that of the MMLU release (Hendrycks et al., 2021): ``<subject>_dev.csv`` holds the solved examples shown
before a question, ``<subject>_test.csv`` the questions; no header; columns question, A, B, C, D, letter of the answer.

The CSV files beside this module are *not* MMLU. They were written for this project's demo, three subjects of a dozen
easy questions, and only show that the benchmark stage works.
"""

from __future__ import annotations

import csv
import difflib
from pathlib import Path
from typing import Literal, TypedDict

from whence.config import BUILTIN_DEMO, Mmlu
from whence.errors import ConfigError, DataError

LETTERS = "ABCD"
HUB = "hub"

# The subjects of MMLU, so that a misspelt one is found before anything is loaded. A test holds them to DeepEval's.
_SUBJECT_NAMES = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology public_relations
    security_studies sociology us_foreign_policy virology world_religions
"""
SUBJECTS = frozenset(_SUBJECT_NAMES.split())


class Question(TypedDict):
    """One question as the hub's dataset and DeepEval have it; ``answer`` is the index of the right choice."""

    question: str
    choices: list[str]
    answer: int


def benchmark_name(settings: Mmlu) -> str:
    """What results may be called: ``mmlu`` for its subjects only, ``demo_questions`` for the project's own set."""
    if settings.source == BUILTIN_DEMO:
        return "demo_questions"
    return "mmlu" if set(settings.tasks) <= SUBJECTS else "questions"


def check_questions(settings: Mmlu) -> None:
    """Check in an instant that every subject is there and its files can be read (of the hub: only its name).

    Raises:
        ConfigError: a subject that the source does not have.
        DataError: a file that cannot be read, or holds something else.
    """
    known = sorted(SUBJECTS) if settings.source == HUB else _subjects(_folder(settings.source))
    for task in settings.tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ConfigError(f"evaluation.mmlu.tasks: {settings.source} has no subject {task!r}", hint=hint)
        if settings.source != HUB:
            read_questions(settings.source, task, "test")
            if settings.n_shots:
                read_shots(settings.source, task, settings.n_shots)


def read_shots(source: str, task: str, count: int) -> list[Question]:
    """The first ``count`` solved examples of a subject.

    Raises:
        DataError: there are fewer, or the file cannot be used.
    """
    shots = read_questions(source, task, "dev")
    if len(shots) < count:
        raise DataError(
            f"{_folder(source) / f'{task}_dev.csv'} has {len(shots)} solved examples, evaluation.mmlu.n_shots asks for "
            f"{count}"
        )
    return shots[:count]


def read_questions(source: str, task: str, split: Literal["dev", "test"]) -> list[Question]:
    """All questions of a subject from a folder, or the built-in set.

    Raises:
        DataError: the file is missing, empty or not UTF-8 CSV, or a row is no question with four choices and a letter.
    """
    path = _folder(source) / f"{task}_{split}.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = enumerate(csv.reader(stream), start=1)
            questions = [_parse(row, f"{path}, row {number}") for number, row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read the questions {path}: {error}", hint="see evaluation.mmlu.source and .tasks"
        ) from error
    if not questions:
        raise DataError(f"{path} is empty", hint="a subject needs at least one question")
    return questions


def _parse(row: list[str], place: str) -> Question:
    if len(row) != 6:
        raise DataError(f"{place}: {len(row)} columns, expected question, A, B, C, D and the letter of the answer")
    text, *choices, letter = row
    if letter.strip() not in set(LETTERS):
        raise DataError(f"{place}: the answer is {letter!r}, expected one of A, B, C, D")
    return {"question": text, "choices": choices, "answer": LETTERS.index(letter.strip())}


def _folder(source: str) -> Path:
    return Path(__file__).parent if source == BUILTIN_DEMO else Path(source)


def _subjects(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ConfigError(
            f"evaluation.mmlu.source: {folder} is no folder",
            hint=f"give {HUB}, {BUILTIN_DEMO}, or a folder with <subject>_dev.csv and <subject>_test.csv",
        )
    return sorted(path.name.removesuffix("_test.csv") for path in folder.glob("*_test.csv"))
