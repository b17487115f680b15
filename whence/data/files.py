"""Rows of csv, jsonl and parquet files, on disk or in S3, as the Python values the file holds.

A file's kind is that of its name's ending. Values are not guessed at: what a csv file holds is text (``NA`` may be a
class), a whole number in JSON or parquet stays whole where other rows have none, and decimals in JSON keep their text.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from whence.config import is_address
from whence.errors import DataError
from whence.files import unique_keys
from whence.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Table:
    """Values of the selected columns that exist, the names of all columns, and each row's line (parquet: number)."""

    values: dict[str, list[Any]]
    columns: list[str]
    lines: list[int]


def expand(name: str, setting: str) -> list[str]:
    """The data files of a file, folder or ``s3://`` address, in alphabetical order.

    Raises:
        DataError: it does not exist, or is a folder without data files.
    """
    is_folder = not is_address(name) and Path(name).is_dir()  # one that Spark wrote may be called train.parquet
    if name.lower().endswith(SUFFIXES) and not is_folder:
        return [name]
    if is_address(name):
        from whence import s3  # with boto3, which local files do not need

        names = s3.list_objects(name, setting)
    elif not Path(name).exists():
        raise DataError(f"{setting}: {name} does not exist")
    elif is_folder:
        names = sorted(str(file) for file in Path(name).iterdir() if file.is_file())
    else:
        raise DataError(f"{setting}: {name} is of an unknown kind", hint=f"use one of {', '.join(SUFFIXES)}")
    files = [file for file in names if file.lower().endswith(SUFFIXES)]
    if not files:
        raise DataError(f"{setting}: the folder {name} has no {', '.join(SUFFIXES)} file")
    return files


def read_table(name: str, selection: Sequence[str], setting: str) -> Table:
    """Read the columns of ``selection`` that one file has.

    Raises:
        DataError: the file is missing, empty, damaged or in another encoding; with the line where there is one.
    """
    import pyarrow as pa

    try:
        if name.lower().endswith(".parquet"):
            with local_copy(name, setting) as path:
                table = _parquet(path, selection)
        else:
            with open_text(name, setting) as stream:
                read = _csv if name.lower().endswith((".csv", ".csv.gz")) else _json_lines
                table = read(stream, f"{setting}: {name}", selection)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{setting}: {name} is not UTF-8 ({error.reason} at byte {error.start})", hint="convert it"
        ) from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{setting}: {name} cannot be read: {error}") from error
    if not table.lines:
        raise DataError(f"{setting}: {name} is empty: it has no rows")
    return table


def _parquet(path: Path, selection: Sequence[str]) -> Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        present = [column for column in selection if column in columns]
        data = file.read(columns=present)
    return Table(values_of(data), columns, list(range(1, data.num_rows + 1)))


def values_of(data: pa.Table) -> dict[str, list[Any]]:
    """The columns as Python values, but small decimals in their own precision, for 0.1 of 32 bits is not that of 64."""
    small = {"float": np.float32, "halffloat": np.float16}
    return {
        name: [kind(value) if value is not None else None for value in column.to_pylist()]
        if (kind := small.get(str(column.type)))
        else column.to_pylist()
        for name, column in zip(data.column_names, data.columns, strict=True)
    }


def _csv(stream: IO[str], origin: str, selection: Sequence[str]) -> Table:
    csv.field_size_limit(sys.maxsize)  # a patent's full text is longer than the 128 KiB Python allows
    reader = csv.reader(stream, strict=True)
    try:
        columns = next(reader, [])
        positions = {column: columns.index(column) for column in selection if column in columns}
        rows, lines = [], []
        for row in _progress(reader, origin):
            if not row:
                continue
            if len(row) != len(columns):
                raise DataError(
                    f"{origin}, line {reader.line_num}: {len(row)} fields, but the header has {len(columns)}"
                )
            rows.append([row[position] for position in positions.values()])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{origin}, line {reader.line_num}: not valid csv: {error}") from error
    return _table(rows, list(positions), columns, lines)


def _json_lines(stream: IO[str], origin: str, selection: Sequence[str]) -> Table:
    columns: dict[str, None] = {}
    rows, lines = [], []
    for number, line in enumerate(_progress(stream, origin), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=str, object_pairs_hook=unique_keys)
        except ValueError as error:
            raise DataError(f"{origin}, line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{origin}, line {number}: expected an object, found {type(row).__name__}")
        columns |= dict.fromkeys(row)
        rows.append([row.get(column) for column in selection])
        lines.append(number)
    table = _table(rows, selection, list(columns), lines)
    return Table({c: values for c, values in table.values.items() if c in columns}, table.columns, lines)


def _table(rows: list[list[Any]], names: Sequence[str], columns: list[str], lines: list[int]) -> Table:
    return Table({name: [row[i] for row in rows] for i, name in enumerate(names)}, columns, lines)


def _progress(rows: Any, origin: str) -> Any:
    return progress(rows, desc=f"read {Path(origin).name}", unit="row")


@contextmanager
def open_text(name: str, setting: str) -> Iterator[IO[str]]:
    """Open a local or ``s3://`` text file (UTF-8 with or without byte order mark, gzip by its ending).

    Raises:
        DataError: the file does not exist or cannot be fetched.
    """
    with local_copy(name, setting) as path:
        opener = gzip.open if name.lower().endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            yield stream


@contextmanager
def local_copy(name: str, setting: str) -> Iterator[Path]:
    """A local file itself, or a temporary copy of an ``s3://`` object for as long as it is needed.

    Raises:
        DataError: the file does not exist or cannot be fetched.
    """
    if not is_address(name):
        if not Path(name).is_file():
            raise DataError(f"{setting}: {name} does not exist or is not a file")
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="whence-s3-") as folder:
        from whence import s3

        target = Path(folder) / Path(name).name
        s3.download(name, target, setting)
        yield target
