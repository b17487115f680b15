"""Examples made up by hand, as artifacts of the stage ``prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from whence.data.dataset import COLUMNS, ExampleSet


def example_set(frame: pd.DataFrame, **facts: Any) -> ExampleSet:
    """The frame with facts that fit it; ``facts`` are others of :class:`whence.data.dataset.DatasetInfo`."""
    return ExampleSet.of(frame, **{"source": "test", "max_length": 64, **facts})


def one_example(folder: Path, answer: str = "Optics") -> Path:
    """Write an artifact of one example with this answer, and return its folder."""
    frame = pd.DataFrame([["train-000000", "A lens?", answer, answer, "1", "test"]], columns=list(COLUMNS))
    example_set(frame).write(folder)
    return folder
