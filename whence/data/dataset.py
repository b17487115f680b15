"""The data artifact: ``data.parquet`` with the examples and ``dataset.json`` with what is known about them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from whence.config import DataFormat, LossOn
from whence.errors import DataError
from whence.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("example_id", "prompt", "completion", "label", "source_id", "source")
DATA, INFO, TRUTH = "data.parquet", "dataset.json", "truth.parquet"


class DataFacts(BaseModel):
    """What examples are, for whoever is told of them. ``rows_read`` is ``rows`` plus all that is in ``dropped``."""

    source: str
    rows: int
    rows_read: int
    dropped: dict[str, int]
    """By reason."""
    changed: dict[str, int]
    """Rows among ``rows`` whose text was changed, by kind; a row may be in several."""
    truncated: int
    """Rows whose prompt or conversation is shortened to fit; their text in the data is whole."""
    tokens: dict[str, float]
    """Mean, 95th percentile and maximum of prompt and answer together."""
    fingerprint: str


class DatasetInfo(DataFacts):
    """Facts about a dataset."""

    split: str
    labels: dict[str, int]
    """Rows per answer, the most frequent first, of many the first thousand."""
    format: DataFormat
    """How rows became text; see ``dataset.format``."""
    loss_on: LossOn
    """What of them is learned; see ``dataset.loss_on``."""
    template: str
    max_length: int


@dataclass(frozen=True)
class ExampleSet:
    """Examples (columns :data:`COLUMNS`, all text), facts about them and, for corpora that know it, the truth.

    ``truth`` has one row per example: ``example_id, planted`` (id of the fact, or empty), ``flipped`` (wrong label on
    purpose) and ``true_completion``.
    """

    frame: pd.DataFrame
    info: DatasetInfo
    truth: pd.DataFrame | None = None

    @classmethod
    def of(cls, frame: pd.DataFrame, truth: pd.DataFrame | None = None, **facts: Any) -> ExampleSet:
        """Examples of one's own: ``prompt`` and ``completion``, other columns where there are any.

        Missing ids are the rows' numbers, missing labels the completions.

        Args:
            facts: those of :class:`DatasetInfo` that are known.

        Raises:
            DataError: a column is missing.
        """
        import pandas as pd
        from pandas.api.types import is_numeric_dtype

        missing = {"prompt", "completion"} - set(frame.columns)
        if missing:
            raise DataError(f"training examples need the columns prompt and completion; there is no {min(missing)}")
        ids = numbers(len(frame))
        defaults = {"example_id": ids, "label": frame["completion"], "source_id": ids, "source": "own"}
        whole = pd.DataFrame({name: frame[name] if name in frame else defaults[name] for name in COLUMNS})
        whole = whole.astype({name: str for name in COLUMNS if is_numeric_dtype(whole[name])}).reset_index(drop=True)
        unknown: dict[str, Any] = {
            "split": "train", "source": "own", "rows": len(frame), "rows_read": len(frame), "dropped": {},
            "changed": {}, "truncated": 0, "labels": whole["label"].value_counts().to_dict(), "template": "{input}",
            "format": "question_answer", "loss_on": "answer", "max_length": 0, "tokens": {},
            "fingerprint": fingerprint(whole),
        }  # fmt: skip
        return cls(whole, DatasetInfo(**unknown | facts), truth)

    def write(self, folder: Path) -> None:
        """Write the artifact into ``folder``, its description last: without it the folder is not a dataset."""
        folder.mkdir(parents=True, exist_ok=True)
        self.frame.to_parquet(folder / DATA, index=False)
        if self.truth is not None:
            self.truth.to_parquet(folder / TRUTH, index=False)
        write_atomically(folder / INFO, json.dumps(self.info.model_dump(), indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> ExampleSet:
        """Read the artifact back.

        Raises:
            DataError: a file is missing or unreadable, or the rows do not have the fingerprint.
        """
        import pandas as pd

        try:
            info = DatasetInfo.model_validate_json((folder / INFO).read_text(encoding="utf-8"))
            frame = pd.read_parquet(folder / DATA)
            truth = pd.read_parquet(folder / TRUTH) if (folder / TRUTH).exists() else None
        except (OSError, ValueError) as error:  # pydantic's and pyarrow's errors are ValueErrors
            raise DataError(
                f"{folder} is not a dataset of Whence ({error})", hint="run `whence prepare` again"
            ) from error
        if tuple(frame.columns) != COLUMNS or fingerprint(frame) != info.fingerprint:
            raise DataError(
                f"{folder / DATA} is not what {INFO} describes: it was altered", hint="run `whence prepare` again"
            )
        if truth is not None and list(truth["example_id"]) != list(frame["example_id"]):
            raise DataError(f"{folder / TRUTH} is not about the rows of {DATA}", hint="run `whence prepare` again")
        return cls(frame, info, truth)


def numbers(count: int) -> list[str]:
    """The ids of rows that have none of their own."""
    return [str(number) for number in range(count)]


def fingerprint(frame: pd.DataFrame) -> str:
    """sha256 (hex) of the examples' content, independent of how parquet stores it."""
    digest = hashlib.sha256()
    for row in frame[list(COLUMNS)].itertuples(index=False):
        digest.update(json.dumps([str(value) for value in row]).encode() + b"\n")
    return digest.hexdigest()
