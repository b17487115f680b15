"""Where rows come from: the Hugging Face hub, local or ``s3://`` files, or the built-in demo corpus.

Whatever the source, rows leave here with the columns ``input, output, source_id, source`` and, where they are known,
``prompt`` (a complete prompt that bypasses the template) and the truth columns ``planted, flipped, true_output``.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from whence.config import BUILTIN_DEMO, Dataset
from whence.data.cleaning import look
from whence.data.files import Table, expand, read_table
from whence.errors import DataError

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class RawRows:
    """Rows as read (a missing value is None), and their source in words."""

    frame: pd.DataFrame
    source: str


def read_rows(settings: Dataset, split: Split, seed: int) -> RawRows:
    """Read the rows of ``split``.

    Raises:
        DataError: the source cannot be reached or read, is empty, lacks a column, or holds values that are not text.
    """
    if settings.name == BUILTIN_DEMO:
        from whence.data.demo import demo_rows

        return RawRows(demo_rows(split, seed), BUILTIN_DEMO)
    columns = [name for key in _columns(split) if (name := getattr(settings, key))]
    if settings.name is not None:
        from whence.data.hub import read_hub  # imports the datasets library, which takes a while

        hub_split = settings.train_split if split == "train" else settings.eval_split
        table, source = read_hub(settings, hub_split, columns)
        return RawRows(_rows(table, source, hub_split, settings.name, settings, split), source)
    setting, names = f"dataset.{split}_files", settings.train_files if split == "train" else settings.eval_files
    files = [file for name in names for file in expand(name, setting)]
    frames = [
        _rows(read_table(file, columns, setting), f"{setting}: {file}", name := Path(file).name, name, settings, split)
        for file in files
    ]
    return RawRows(pd.concat(frames, ignore_index=True), ", ".join(names))


def _columns(split: Split) -> tuple[str, ...]:
    """The settings that name columns of a split; that labels may be wrong matters in training only."""
    of_training = ("truth_column",) if split == "train" else ()
    return ("input_column", "output_column", "id_column", "source_column", *of_training)


def _rows(table: Table, origin: str, prefix: str, source: str, settings: Dataset, split: Split) -> pd.DataFrame:
    """The rows of a table; ``prefix`` is of the ids of those that have none, ``source`` where those that do not say are
    from.
    """
    for key in _columns(split):
        _check_column(key, getattr(settings, key), table.columns, origin)

    def texts(column: str) -> list[str | None]:
        pairs = zip(table.values[column], table.lines, strict=True)
        return [_text(value, f"{origin}, row {line}, column {column!r}") for value, line in pairs]

    numbers = [f"{prefix}:{line}" for line in table.lines]
    ids = texts(settings.id_column) if settings.id_column else numbers
    sources = texts(settings.source_column) if settings.source_column else [None] * len(numbers)
    outputs = _named(texts(settings.output_column), settings.label_names, table.lines, origin)
    rows = {
        "input": texts(settings.input_column),
        "output": outputs,
        "source_id": [own or number for own, number in zip(ids, numbers, strict=True)],
        "source": [own or source for own in sources],
    }
    if split == "train" and settings.truth_column:
        truth = _named(texts(settings.truth_column), settings.label_names, table.lines, origin)
        rows |= _truth(outputs, truth, f"dataset.truth_column: {origin}", table.lines)
    return pd.DataFrame(rows, dtype=object)


def _truth(outputs: list[str | None], truth: list[str | None], origin: str, lines: list[int]) -> dict[str, list[Any]]:
    """The truth columns, where the right answer of every row is known beside ``outputs``."""
    for value, line in zip(truth, lines, strict=True):
        if value is None:
            raise DataError(f"{origin}, row {line} has no right answer; fill it in, or set dataset.truth_column: null")
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
                f"{', '.join(names)}; add it, or remove dataset.label_names to use the values as they are"
            )
    return [names[value] if value is not None else None for value in stripped]
