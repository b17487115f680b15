"""Rows of a dataset on the Hugging Face hub. No code of a dataset is ever run: only its data files are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from whence.config import Dataset
from whence.data.files import Table, values_of
from whence.errors import DataError
from whence.progress import progress

SHUFFLED = 10_000  # rows that a stream is shuffled within
PARQUET_EXPORT = "refs/convert/parquet"
"""Branch on which the hub keeps its own parquet copy of a dataset, also of those that come as a loading script."""


def read_hub(settings: Dataset, split: str, selection: Sequence[str], seed: int) -> tuple[Table, str]:
    """Read the columns of ``selection`` that a split has; class labels become names unless ``label_names`` is set.

    With ``dataset.streaming`` so many of its rows alone: the first of a stream that ``seed`` shuffles (its files, and
    rows within a buffer of ``SHUFFLED``).

    Returns:
        The rows, and their source in words, with the commit if the hub answers.

    Raises:
        DataError: the hub cannot be reached and there is no cached copy, or dataset, revision or split do not exist.
    """
    name = str(settings.name)
    source = f"{name}{f'/{settings.config_name}' if settings.config_name else ''} [{split}]"
    commit = None if Path(name).is_dir() else _commit(name, settings.revision)
    try:
        data = _load(settings, split, commit or settings.revision, seed)
    except Exception as error:  # the library raises nearly every kind
        raise DataError(f"dataset.name: cannot load {source}: {_reason(error, name, commit)}") from error
    present = [column for column in selection if column in data.column_names]
    values = values_of(data.select_columns(present).with_format("arrow")[:])
    for column in values.keys() & {settings.output_column, settings.truth_column}:
        feature = data.features[column]
        if isinstance(feature, datasets.ClassLabel) and settings.label_names is None:
            values[column] = [_class_name(feature, value) for value in values[column]]
    table = Table(values, list(data.column_names), list(range(1, len(data) + 1)))
    return table, source + (f"@{commit}" if commit else "")


def _commit(name: str, revision: str | None) -> str | None:
    """The commit a revision stands for now; None when the hub cannot be reached (a cached copy may still serve)."""
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=10).sha
    except (httpx.TransportError, OfflineModeIsEnabled):
        return None
    except (HfHubHTTPError, HFValidationError) as error:
        dataset = f"{name} at revision {revision}" if revision else name
        raise DataError(
            f"dataset.name: the Hugging Face hub refuses {dataset}: {str(error).splitlines()[0]}",
            hint="check the name and dataset.revision, and set HF_TOKEN if the dataset is private or gated",
        ) from error


def _load(settings: Dataset, split: str, revision: str | None, seed: int) -> datasets.Dataset:
    name, subset = str(settings.name), settings.config_name
    how = {"split": split, "revision": revision, "streaming": settings.streaming is not None}
    try:
        found = datasets.load_dataset(name, subset, **how)
    except ValueError as error:
        if subset is None or "BuilderConfig" not in str(error):
            raise
        # On the parquet branch the configurations are folders.
        found = datasets.load_dataset(name, data_dir=subset, **how)
    if settings.streaming is None:
        return found
    stream = found.shuffle(seed, buffer_size=SHUFFLED).take(settings.streaming)
    rows = progress(stream, desc=f"stream {split}", unit="row", total=settings.streaming)
    return datasets.Dataset.from_list(list(rows), features=stream.features)


def _reason(error: Exception, name: str, commit: str | None) -> str:
    if "scripts are no longer supported" in str(error):
        return (
            "it is published as a script, and scripts are not run; set dataset.revision to "
            f"{PARQUET_EXPORT}, the hub's own copy as files"
        )
    if commit is None and not Path(name).is_dir():
        return (
            "the Hugging Face hub cannot be reached, and there is no copy in the local cache; check the network, or "
            "download the data and give it as dataset.train_files and dataset.eval_files"
        )
    return f"{error}; check dataset.config_name, dataset.train_split and dataset.eval_split"


def _class_name(feature: datasets.ClassLabel, value: Any) -> str | None:
    """The name of a class; -1 stands for a withheld label."""
    return feature.int2str(value) if value is not None and value >= 0 else None
