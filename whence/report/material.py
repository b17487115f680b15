"""Everything a report is made from, as the stages left it. What was not measured is None, and the page says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whence.config import Config
from whence.data.dataset import ExampleSet
from whence.errors import DataError
from whence.report.details import Details
from whence.validation.bm25 import bm25_scores
from whence.validation.evidence import Evidence


@dataclass(frozen=True)
class Links:
    """Where the record of the run is; None where there is no page to open."""

    mlflow: str | None = None
    kubeflow: str | None = None
    tracking: str = ""  # the tracking address, for people who open MLflow on a file
    run_id: str | None = None
    not_recorded: tuple[str, ...] = ()  # what MLflow has refused


@dataclass(frozen=True)
class Material:
    """The inputs of a report.

    Attributes:
        history: what training logged: ``step`` and any of ``loss``, ``eval_loss``.
        measured: ``comparison.json``.
        answers: a row per prompt, in the order asked: ``prompt_id, prompt, shortened, reference``, and by role as in
            ``base_answer``: the ``answer``, the ``mean_logprob`` of its tokens, and how it ``ended``.
        queries: a row per row of ``scores``: ``query_id, prompt, completion, source``.
        scores: ``[queries, examples]``, positive where the example helped.
        influences: the examples listed per query and direction, as ``influences.parquet``.
        tokens: ``query_id, example_id, pieces, scores``: a listed pair's score, split by the example's tokens.
        modules: ``query_id, example_id, layer, module, score``: the same, split by tracked module.
        turns: ``query_id, example_id, turn, score``: the same, split by the assistant's turns.
        self_influence: ``[examples]``.
        origin: ``scores.json``: fingerprints, arguments and versions.
        spectra: a row per module: ``module, layer, kind, size, ranks, values, effective_rank, ...``.
        pictures: PNG files of the spectra by name.
        benchmark: ``mmlu.json``: by model id.
        absent: why ``spectra``, ``evidence`` or ``benchmark`` was not made, where that is known.
        failures: what became of the stages that failed.
    """

    config: Config
    train: ExampleSet
    history: Sequence[Mapping[str, float]]
    measured: Mapping[str, Any]
    answers: pd.DataFrame
    queries: pd.DataFrame
    scores: np.ndarray
    influences: pd.DataFrame
    origin: Mapping[str, Any]
    tokens: pd.DataFrame | None = None
    modules: pd.DataFrame | None = None
    turns: pd.DataFrame | None = None
    self_influence: np.ndarray | None = None
    spectra: pd.DataFrame | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    evidence: Evidence | None = None
    benchmark: Mapping[str, Any] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()
    links: Links = Links()

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.queries), len(self.train.frame)):
            raise DataError(
                f"scores are {self.scores.shape}, but there are {len(self.queries)} queries and "
                f"{len(self.train.frame)} training examples",
                hint="score these examples again",
            )
        unknown = set(self.influences["example_id"]) - self.places.keys()
        if unknown:
            raise DataError(
                f"influences.parquet lists {min(unknown)!r}, which is no training example", hint="score again"
            )

    @cached_property
    def examples(self) -> list[Any]:
        """The training examples, with ``example_id, prompt, completion, label`` as attributes."""
        return list(self.train.frame.itertuples(index=False, name="Example"))

    @cached_property
    def places(self) -> dict[str, int]:
        """The column of ``scores`` by example_id."""
        return {example.example_id: place for place, example in enumerate(self.examples)}

    @cached_property
    def details(self) -> Details:
        """The listed influences taken apart."""
        return Details(self.tokens, self.modules, self.turns)

    @cached_property
    def texts(self) -> list[str]:
        """Every training example as one text."""
        return [f"{example.prompt} {example.completion}" for example in self.examples]

    @cached_property
    def word_overlap(self) -> np.ndarray:
        """BM25 of every example for every query (prompt and scored answer), ``[queries, examples]``."""
        asked = [f"{p} {c}" for p, c in zip(self.queries["prompt"], self.queries["completion"], strict=True)]
        return bm25_scores(asked, self.texts)


def read_json(path: Path) -> Any:
    """The content of a JSON file that a stage has written.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="run the stage that makes it again") from error


def read_evidence(path: Path, origin: Mapping[str, Any]) -> Evidence:
    """The evidence, which must be of the very scores that ``origin`` describes.

    Raises:
        DataError: naming both fingerprints.
    """
    evidence = Evidence.read(path)
    for name, value in evidence.fingerprints.items():
        if origin.get(name) not in (None, value):
            raise DataError(
                f"the evidence in {path} is of another {name} ({value[:12]}...) than the scores "
                f"({origin[name][:12]}...)",
                hint="run `whence validate` on these scores",
            )
    return evidence
