"""A finished run of the pipeline on this machine, read from its folder: for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.config import Config
from whence.config_file import parse_config
from whence.errors import DataError
from whence.influence.index import Index
from whence.influence.results import Scores
from whence.running.artifacts import EVIDENCE_FILE
from whence.running.lineage import BASE, config_of

if TYPE_CHECKING:
    from whence.models.language import LanguageModel
    from whence.models.trained import TrainedModel
    from whence.validation.evidence import Evidence, Grade


@dataclass(frozen=True)
class RunFolder:
    """What a run has left in ``folder``; everything is read when it is first looked at.

    Attributes:
        overrides: settings by dotted key that win over the run's own.
    """

    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def place(self, stage: str, name: str) -> Path:
        """Where a stage's output stands, or would."""
        return self.folder / "artifacts" / stage.replace("_", "-") / name

    def artifact(self, stage: str, name: str) -> Path:
        """Where a stage's output is: ``artifact("train", "model")``.

        Raises:
            DataError: the run has none.
        """
        path = self.place(stage, name)
        if not path.exists():
            raise DataError(
                f"{self.folder} has no {name} of stage {stage} ({path})", hint="give the folder of a finished run"
            )
        return path

    @cached_property
    def config(self) -> Config:
        """The run's settings, every value explicit.

        Raises:
            ConfigError: an override is wrong.
        """
        config = config_of(self.artifact("train", "model"))
        return parse_config(config.to_yaml(), self.overrides, origin="the run's settings") if self.overrides else config

    @cached_property
    def trained(self) -> TrainedModel:
        """The fine-tuned model with its training examples, on the device that the settings choose."""
        from whence.models.trained import TrainedModel  # with torch, which looking at scores does without

        return TrainedModel.load(self.artifact("train", "model"), self.artifact("prepare", "train_data"), self.config)

    @cached_property
    def base(self) -> LanguageModel:
        """The model before training, on the same device."""
        from whence.models.loading import load_base

        return load_base(self.artifact("train", "model") / BASE, self.config)

    @property
    def factors(self) -> Path:
        """The folder of the influence factors."""
        return self.artifact("fit_factors", "factors")

    @cached_property
    def index(self) -> Index:
        """What new questions are compared with (:mod:`whence.asking`)."""
        return Index.read(self.artifact("index", "index"))

    @cached_property
    def language(self) -> LanguageModel:
        """The fine-tuned model alone, on the device that the settings choose."""
        from whence.models.loading import load_model

        return load_model(self.artifact("train", "model"), self.config)

    @cached_property
    def scores(self) -> Scores:
        """The scores, with their tables."""
        return Scores(self.artifact("score", "scores"))

    @property
    def grade(self) -> Grade | None:
        """The evidence in a word and a sentence; None where none was gathered yet."""
        try:
            return self.evidence.grade
        except DataError:
            return None

    @cached_property
    def evidence(self) -> Evidence:
        """How far the attributions can be trusted."""
        from whence.validation.evidence import Evidence

        return Evidence.read(self.artifact("validate", "evidence") / EVIDENCE_FILE)


def load_run(folder: str | Path = "whence-output/latest", overrides: Mapping[str, Any] | None = None) -> RunFolder:
    """Open the folder of a run: ``whence-output/latest``, or another one below ``whence-output``.

    Args:
        overrides: settings by dotted key that win over the run's own, e.g. ``{"general.device": "cpu"}``.

    Raises:
        DataError: it is no folder of a run.
    """
    run = RunFolder(Path(folder), overrides or {})
    run.artifact("train", "model")
    return run
