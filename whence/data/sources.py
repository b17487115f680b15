"""Where rows come from: the Hugging Face hub, local or ``s3://`` files, or the built-in demo corpus.

Whatever the source, rows leave here with the columns ``input, output, source_id, source`` and, where they are known,
``prompt`` (a complete prompt that bypasses the template) and the truth columns ``planted, flipped, true_output``.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from whence.config import BUILTIN_CHAT, BUILTIN_DEMO, DataFormat, Dataset
from whence.data.chat import ASSISTANT, parse_messages, to_text
from whence.data.cleaning import look
from whence.data.files import Table, expand, read_table
from whence.errors import DataError

Split = Literal["train", "eval"]
MESSAGES, PAIR = "messages", ("prompt", "completion")  # columns, as TRL names them


@dataclass(frozen=True)
class RawRows:
    """Rows as read (a missing value is None), and their source in words."""

    frame: pd.DataFrame
    source: str
    format: DataFormat = "question_answer"
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that could not be read as the format has them, by reason."""
    last_alone: bool = False
    """Whether a conversation's last answer alone is to be learned: what precedes it was given as its prompt."""

    @property
    def rows_read(self) -> int:
        """Rows of the source, those that could not be read included."""
        return len(self.frame) + self.dropped.total()


def read_rows(settings: Dataset, split: Split, seed: int) -> RawRows:
    """Read the rows of ``split``.

    Raises:
        DataError: the source cannot be reached or read, is empty, lacks a column, or holds values that are not text.
    """
    if settings.name == BUILTIN_DEMO:
        from whence.data.demo import demo_rows

        return RawRows(demo_rows(split, seed), BUILTIN_DEMO)
    if settings.name == BUILTIN_CHAT:
        from whence.data.demo import chat_rows

        return RawRows(chat_rows(split, seed), BUILTIN_CHAT, "messages")
    columns = [settings.input_column, settings.output_column, MESSAGES, *PAIR, *_columns(settings, split).values()]
    if settings.name is not None:
        from whence.data.hub import read_hub  # imports the datasets library, which takes a while

        hub_split = settings.train_split if split == "train" else settings.eval_split
        table, source = read_hub(settings, hub_split, columns, seed)
        return _joined([_rows(table, source, hub_split, settings.name, settings, split)], source)
    setting, names = f"dataset.{split}_files", settings.train_files if split == "train" else settings.eval_files
    files = [file for name in names for file in expand(name, setting)]
    frames = [
        _rows(read_table(file, columns, setting), f"{setting}: {file}", name := Path(file).name, name, settings, split)
        for file in files
    ]
    return _joined(frames, ", ".join(names))


def _joined(tables: list[RawRows], source: str) -> RawRows:
    """The rows of all files, which must be of one format."""
    first = tables[0]
    other = next((table for table in tables if table.format != first.format), None)
    if other is not None:
        raise DataError(
            f"dataset.format: {first.source} has rows of {first.format}, {other.source} of {other.format}",
            hint="give files of one format",
        )
    dropped = sum((table.dropped for table in tables), Counter[str]())
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    return RawRows(frame, source, first.format, dropped, first.last_alone)


def recognised(columns: Collection[str], settings: Dataset, origin: str) -> DataFormat:
    """The format that the columns tell, as TRL names them where they are not the settings' own.

    Raises:
        DataError: they tell none.
    """
    if settings.format is not None:
        return settings.format
    known: dict[DataFormat, set[str]] = {
        "question_answer": {settings.input_column, settings.output_column},
        "messages": {MESSAGES},
        "prompt_completion": {*PAIR},
    }
    for name, needed in known.items():
        if needed <= set(columns):
            return name
    if list(columns) == [settings.input_column]:  # beside others, the answer's column may just be misspelt
        return "text"
    for key in ("input_column", "output_column"):
        _check_column(key, getattr(settings, key), list(columns), origin)
    raise AssertionError("one of the two columns is missing")


def _columns(settings: Dataset, split: Split) -> dict[str, str]:
    """The columns that the settings name beside those of text; that labels may be wrong matters in training only."""
    keys = ("id_column", "source_column", *(("truth_column",) if split == "train" else ()))
    return {key: name for key in keys if (name := getattr(settings, key))}


def _rows(table: Table, origin: str, prefix: str, source: str, settings: Dataset, split: Split) -> RawRows:
    """The rows of a table; ``prefix`` is of the ids of those that have none, ``source`` where those that do not say are
    from.
    """
    format = recognised(table.columns, settings, origin)
    paired = format == "prompt_completion"
    text, answer = ("input_column", settings.input_column), ("output_column", settings.output_column)
    needed = {
        "question_answer": [text, answer],
        "messages": [("format", MESSAGES)],
        "prompt_completion": [("format", name) for name in PAIR],
        "text": [text],
    }[format]
    for key, name in (*needed, *_columns(settings, split).items()):
        _check_column(key, name, table.columns, origin)

    def texts(column: str) -> list[str | None]:
        pairs = zip(table.values[column], table.lines, strict=True)
        return [_text(value, f"{origin}, row {line}, column {column!r}") for value, line in pairs]

    numbers = [f"{prefix}:{line}" for line in table.lines]
    ids = texts(settings.id_column) if settings.id_column else numbers
    sources = texts(settings.source_column) if settings.source_column else [None] * len(numbers)
    if paired and any(isinstance(value, list) for value in table.values[PAIR[0]]):
        format = "messages"
    reasons: list[str | None] = [None] * len(numbers)
    inputs: list[str | None]
    outputs: list[str | None]
    if format == "messages":
        whole = [table.values[name] for name in (PAIR if paired else (MESSAGES,))]
        found = [_conversation([*(message for part in parts for message in part or [])], f"{origin}, row {line}")
                 for *parts, line in zip(*whole, table.lines, strict=True)]  # fmt: skip
        inputs, outputs, reasons = ([one[place] for one in found] for place in range(3))
    elif format == "text":
        inputs = outputs = texts(settings.input_column)
    elif format == "prompt_completion":
        inputs, outputs = texts(PAIR[0]), texts(PAIR[1])
    else:
        inputs = texts(settings.input_column)
        outputs = _named(texts(settings.output_column), settings.label_names, table.lines, origin)
    rows: dict[str, Any] = {
        "input": inputs,
        "output": outputs,
        "source_id": [own or number for own, number in zip(ids, numbers, strict=True)],
        "source": [own or source for own in sources],
    }
    if split == "train" and settings.truth_column:
        truth = _named(texts(settings.truth_column), settings.label_names, table.lines, origin)
        rows |= _truth(outputs, truth, f"dataset.truth_column: {origin}", table.lines)
    frame = pd.DataFrame(rows, dtype=object)
    usable = np.array([reason is None for reason in reasons], dtype=bool)
    dropped = Counter(reason for reason in reasons if reason)
    return RawRows(frame[usable], origin, format, dropped, last_alone=paired and format == "messages")


def _conversation(messages: list[Any], origin: str) -> tuple[str | None, str | None, str | None]:
    """What precedes the last answer of the assistant, that answer, and in a word why there is none."""
    parsed = parse_messages(messages, origin)
    if parsed is None:
        return None, None, "not_text_alone"
    last = max((place for place, message in enumerate(parsed) if message["role"] == ASSISTANT), default=0)
    if not last:
        return None, None, "without_answer"
    return to_text(parsed[:last]), parsed[last]["content"], None


def _truth(outputs: list[str | None], truth: list[str | None], origin: str, lines: list[int]) -> dict[str, list[Any]]:
    """The truth columns, where the right answer of every row is known beside ``outputs``."""
    for value, line in zip(truth, lines, strict=True):
        if value is None:
            raise DataError(
                f"{origin}, row {line} has no right answer", hint="fill it in, or set dataset.truth_column: null"
            )
    flipped = [one is not None and look(one) != look(str(other)) for one, other in zip(outputs, truth, strict=True)]
    return {"planted": [""] * len(truth), "flipped": flipped, "true_output": truth}


def _check_column(key: str, column: str | None, columns: list[str], origin: str) -> None:
    if column is None or column in columns:
        return
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; set dataset.{key} to one of them"
    raise DataError(f"dataset.{key}: {origin} has no column {column!r}, it has {', '.join(columns)}{hint}")


def _text(value: Any, origin: str) -> str | None:
    """A value as text; whole numbers of a column of decimals without a point, for pandas makes them of whole ones."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return None
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{origin}: expected text or a number, found {type(value).__name__} {str(value)[:40]}")
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))
    return str(value)


def _named(values: list[str | None], names: dict[str, str] | None, lines: list[int], origin: str) -> list[str | None]:
    """The values' names, if there are any; None stays None, and an empty text is None."""
    if names is None:
        return values
    stripped = [value.strip() or None if value is not None else None for value in values]
    for value, line in zip(stripped, lines, strict=True):
        if value is not None and value not in names:
            raise DataError(
                f"dataset.label_names: {origin}, row {line} has the value {value!r}, but there are names only for "
                f"{', '.join(names)}",
                hint="add it, or remove dataset.label_names to use the values as they are",
            )
    return [names[value] if value is not None else None for value in stripped]
