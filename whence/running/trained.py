"""A fine-tuned model with its training examples: what fitting and scoring begin with, alone or shared among tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whence.config import Config
from whence.data.dataset import ExampleSet
from whence.data.formatting import tail_of
from whence.data.tokenization import TokenizedExamples, token_texts
from whence.influence.factors import open_fit
from whence.influence.fit import Fit
from whence.influence.info import FactorsInfo, FitIdentity
from whence.influence.plan import share
from whence.models import load_model, tokenizer_fingerprint
from whence.running.artifacts import GENERATIONS_FILE
from whence.running.queries import query_frame

FIT_SETTINGS = ["general", "factors", "dataset.loss_on", "dataset.template"]
SCORE_SETTINGS = ["general", "scores", "prompts", "dataset.loss_on", "dataset.template"]


def share_of(settings: Config, task: int, data_partitions: int) -> range:
    """The parts of the data that fall to one of ``general.parallel_tasks``."""
    return share(data_partitions, task, settings.general.parallel_tasks or 1)


def task_name(stage: str, task: int) -> str:
    """The stage's name for people and records, where several tasks share it: ``fit_lambdas-2``."""
    return f"{stage}-{task + 1}"


def numbered(name: str, folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of all tasks as inputs of a stage that joins them."""
    return {f"{name}_{number}": folder for number, folder in enumerate(folders)}


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model with the examples it was trained on."""

    settings: Config
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: ExampleSet
    examples: TokenizedExamples

    @classmethod
    def load(cls, settings: Config, model: Path, train_data: Path) -> Trained:
        network, tokenizer = load_model(model, settings.general)
        data = ExampleSet.read(train_data)
        return cls(settings, network, tokenizer, data, TokenizedExamples.from_frame(data.frame, tokenizer, settings))

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def open_fit(self, work: Path, sources: Sequence[Path] = ()) -> tuple[Fit, FitIdentity]:
        """The fit of the factors with its parts in ``work``, using those of other tasks in ``sources``."""
        work.mkdir(parents=True, exist_ok=True)
        fingerprint = tokenizer_fingerprint(self.tokenizer)
        return open_fit(
            self.network, self.examples, self.settings, work, self.pad_token_id,
            tokenizer_fingerprint=fingerprint, sources=sources,
        )  # fmt: skip

    def queries(self, generations: Path) -> tuple[pd.DataFrame, TokenizedExamples]:
        """The queries of the settings, as a table and as tokens."""
        frame = query_frame(self.settings, pd.read_parquet(generations / GENERATIONS_FILE))
        return frame, TokenizedExamples.from_frame(frame, self.tokenizer, self.settings)

    def texts(self, places: Iterable[int]) -> dict[int, list[str]]:
        """The text of every token of the examples at ``places``."""
        general, tail = self.settings.general, tail_of(self.settings.dataset.template)
        rows = {place: self.data.frame.iloc[place] for place in places}
        return {
            place: token_texts(self.tokenizer, row["prompt"], row["completion"], general.max_length, tail)
            for place, row in rows.items()
        }

    def scoring(self, factors: Path) -> dict[str, Any]:
        """What all ways of scoring these examples are called with, by name."""
        return {
            "model": self.network,
            "factors": factors,
            "train": self.examples,
            "config": self.settings,
            "pad_token_id": self.pad_token_id,
            "tokenizer_fingerprint": tokenizer_fingerprint(self.tokenizer),
        }


def factor_metrics(info: FactorsInfo) -> dict[str, float]:
    """What the Kubeflow UI shows of fitted factors."""
    return {
        "modules": float(len(info.modules)),
        "examples": float(info.num_examples),
        "bytes": float(info.size_bytes),
    }
