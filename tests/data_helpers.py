"""Examples made up by hand, as artifacts of the stage ``prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from whence.data.dataset import COLUMNS, DatasetInfo, ExampleSet, fingerprint


def example_set(frame: pd.DataFrame, **facts: Any) -> ExampleSet:
    """The frame (:data:`COLUMNS`) with facts that fit it; ``facts`` are others of :class:`DatasetInfo`."""
    fitting = {
        "split": "train",
        "source": "test",
        "rows": len(frame),
        "rows_read": len(frame),
        "dropped": {},
        "truncated": 0,
        "labels": {},
        "template": "{input}",
        "max_length": 64,
        "tokens": {},
        "fingerprint": fingerprint(frame),
    }
    return ExampleSet(frame, DatasetInfo(**fitting | facts))


def one_example(folder: Path, answer: str = "Optics") -> Path:
    """Write an artifact of one example with this answer, and return its folder."""
    frame = pd.DataFrame([["train-000000", "A lens?", answer, answer, "1"]], columns=list(COLUMNS))
    example_set(frame).write(folder)
    return folder
