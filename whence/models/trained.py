"""A trained model together with the examples it was trained on: what factors and scores begin with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whence.config import Config
from whence.config_file import parse_config
from whence.data.dataset import ExampleSet
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError
from whence.models.language import LanguageModel
from whence.models.loading import count_processes, have_devices, load_model
from whence.processes import Team, team

_OWN = "{models: {base: {name: own}}, dataset: {name: own}, prompts: {items: [own]}}"


@dataclass
class TrainedModel(LanguageModel):
    """A model with its tokenizer, its training examples and the settings.

    Attributes:
        examples: the training examples as tokens.
        data: the same as text, with what is known of them; None where nobody has the text.
    """

    examples: TokenizedExamples
    data: ExampleSet | None = None

    @classmethod
    def load(cls, model: Path, train_data: Path, config: Config) -> TrainedModel:
        """Load a fine-tuned model and its training examples from the folders that ``train`` and ``prepare`` wrote.

        Raises:
            ModelError: the model cannot be loaded.
            DataError: the examples cannot be read, or an answer does not fit within ``general.max_length``.
        """
        loaded, data = load_model(model, config), ExampleSet.read(train_data)
        return cls(loaded.model, loaded.tokenizer, config, loaded.tokenize(data.frame), data)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        train: pd.DataFrame,
        config: Config | None = None,
    ) -> TrainedModel:
        """A model and examples of one's own, without any pipeline.

        Args:
            model: any causal language model of transformers, on the device to work on.
            train: a row per training example: ``prompt`` and ``completion``, and ``example_id`` and ``label`` where
                there are any (else the row's number, and the completion).
            config: the settings; None: :func:`own_config` alone.

        Raises:
            DataError: an answer does not fit within ``general.max_length``.
        """
        loaded, data = LanguageModel(model, tokenizer, config or own_config()), ExampleSet.of(train)
        return cls(model, tokenizer, loaded.config, loaded.tokenize(data.frame), data)

    @classmethod
    @contextmanager
    def load_team(cls, model: Path, train_data: Path, config: Config) -> Iterator[tuple[TrainedModel, Team]]:
        """What :meth:`load` loads, and processes that have loaded the same, as many as ``general.processes`` says.

        Raises:
            ResourceError: there are fewer devices than processes. Other errors are those of :meth:`load`.
        """
        general = config.general.model_copy(update={"processes": count_processes(config.general)})
        config = config.model_copy(update={"general": general})
        load = partial(cls.load, model, train_data, config)
        with team(count_processes(general), have_devices(general), load) as processes:
            yield load(), processes

    @property
    def frame(self) -> pd.DataFrame:
        """The training examples as text, a row each (:data:`whence.data.dataset.COLUMNS`)."""
        return self.text.frame

    @property
    def text(self) -> ExampleSet:
        """The training examples as text.

        Raises:
            DataError: there is none.
        """
        if self.data is None:
            raise DataError(
                "the text of these training examples is not known", hint="make the model with TrainedModel.of"
            )
        return self.data

    def with_config(self, config: Config) -> TrainedModel:
        """The same model and examples under other settings."""
        return self._changed(config=config)

    def with_examples(self, examples: TokenizedExamples) -> TrainedModel:
        """The same model with other examples, whose text is not known."""
        return self._changed(examples=examples, data=None)

    def texts(self, rows: Iterable[int]) -> dict[int, list[str]]:
        """The text of every token of the examples in these ``rows``."""
        chosen = {row: self.frame.iloc[row] for row in rows}
        return {row: self.token_texts(example["prompt"], example["completion"]) for row, example in chosen.items()}

    def _changed(self, **values: object) -> TrainedModel:
        other = copy.copy(self)  # fingerprints that were computed included
        vars(other).update(values)
        return other


def own_config(overrides: dict[str, object] | None = None) -> Config:
    """The default settings for a model and examples of one's own, with ``overrides`` by dotted key.

    For example ``{"general.max_length": 128, "factors.modules": ["c_fc", "c_proj"]}``.

    Raises:
        ConfigError: a key or value is wrong.
    """
    return parse_config(_OWN, overrides, origin="the settings")
