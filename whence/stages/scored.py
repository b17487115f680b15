"""What stages ask of scores before they show them beside other artifacts. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from whence.data.dataset import ExampleSet
from whence.errors import DataError
from whence.stages.artifacts import SCORES_INFO


def require_scores_of(train_data: Path, scores: Path) -> None:
    """Scores of other examples would be shown beside these examples' text.

    Raises:
        DataError: naming both fingerprints.
    """
    scored = json.loads((scores / SCORES_INFO).read_text(encoding="utf-8"))["train_data"]
    given = ExampleSet.read(train_data).info.fingerprint
    if scored != given:
        raise DataError(
            f"the scores in {scores} are of other training data ({scored[:12]}...) than {train_data} "
            f"({given[:12]}...); score these examples first"
        )
