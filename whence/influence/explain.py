"""Explaining an answer as it is asked for: the index ranks the training examples at once, and the first are scored.

The first ranking is of estimates, from codes of 2 KB an example; what is listed is then scored exactly, by its own
gradients, and divided among the examples' tokens and the model's modules in the same pass.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from transformers import PreTrainedModel

from whence.data.batching import plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError
from whence.influence import layout, memory
from whence.influence.collectors import SKETCHES, QueryCollector, Whitening, collect
from whence.influence.detail import Detail, DetailCollector, TurnPairs
from whence.influence.factors import require_matching_model
from whence.influence.index import Index, IndexInfo
from whence.influence.info import Shape, load_factors_info, require_same
from whence.influence.loader import Loader
from whence.influence.queries import QueryGradients
from whence.influence.shared import share_inputs
from whence.influence.sketch import Sketch
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import tracked_model, tracked_modules
from whence.models.language import LanguageModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """An answer to be explained: the sketch of its gradient, and its preconditioned gradient by module."""

    sketch: np.ndarray
    gradients: dict[str, QueryGradients]


class Exact(NamedTuple):
    """Scores of training examples on one query ``[examples]`` fp64, and where they come from."""

    scores: np.ndarray
    detail: Detail


class Explainer:
    """A model with its factors and the index of its training set, ready to be asked again and again.

    The factors of all modules are held from the first question on, where they fit (``serving.hold_factors``). Scores
    are those of :func:`whence.influence.scores.pairwise_scores` at full rank, up to the rounding of
    ``serving.factors_dtype``.
    """

    def __init__(self, language: LanguageModel, factors: Path, index: Index) -> None:
        """Take what belongs together.

        Args:
            factors: folder written by :func:`whence.influence.factors.fit_factors`.

        Raises:
            FactorError: the factors or the index are of another model, tokenizer, template, damping or loss mask.
            ResourceError: a batch does not fit into memory, or factors that are to be held do not.
        """
        self.language, self.index, self.info = language, index, load_factors_info(factors)
        require_matching_model(self.info, language)
        found = IndexInfo.of(language, self.info.fingerprint, index.data).belongs_to
        require_same(found, index.info.belongs_to, "the index", "Make it again for this model and these settings.")
        config, shapes = language.config, self.info.shapes
        self._batch_tokens = config.scores.train_batch_size * config.general.max_length
        self._task = LanguageModelingTask(language.model, self.info.modules)
        self._source = partial(layout.load_tensor, layout.factors_folder(factors, self.info.strategy))
        self._factor_arguments = FactorArguments(**self.info.arguments)
        self._arguments = ScoreArguments(damping_factor=config.scores.damping_factor)
        held, dtype = self._plan(shapes, index.info.dimensions)
        sketch = Sketch(index.info.dimensions, index.info.bits, index.info.seed)
        self._whitening = Whitening(sketch, held, dtype)

    def _plan(self, shapes: Mapping[str, Shape], dimensions: int) -> tuple[bool, torch.dtype]:
        """Whether the factors of all modules are held, and in what precision; the log says what that takes.

        Raises:
            ResourceError: a batch does not fit into memory, or factors that are to be held do not.
        """
        model, serving = self.language.model, self.language.config.serving
        dtype: torch.dtype = getattr(torch, serving.factors_dtype)
        room = memory.available_memory(self.language.device) + memory.weight_bytes(model)

        def phase(held: bool) -> memory.Phase:
            strategy = self.info.strategy if held else None
            tokens, width = self._batch_tokens, dtype.itemsize
            return memory.score_phase(
                model, shapes, tokens, 1, None, 1, strategy=strategy, sketches=dimensions, factor_width=width
            )

        held = phase(True).total <= room if serving.hold_factors is None else serving.hold_factors
        hint = "lower scores.train_batch_size" + (", or set serving.hold_factors to false" if held else "")
        memory.require_memory([phase(held)], room, hint)
        kept = f"held in {serving.factors_dtype}" if held else "read from disk module by module for every question"
        logger.info("factors of %d modules are %s", len(shapes), kept)
        return held, dtype

    def query(self, answer: TokenizedExamples) -> Query:
        """Take the gradient of one answer.

        Raises:
            DataError: the loss counts on none of its tokens.
        """
        if not answer.counted(0):
            raise DataError("the answer is empty, so no training example is behind it")
        collector = QueryCollector(self._whitening, 1)
        with self._network() as network:
            sketches = collect(network, self._task, Loader(answer, [[0]]), [collector])[SKETCHES]
        return Query(sketches[0].numpy(), collector.gradients)

    def exact(self, query: Query, rows: Sequence[int]) -> Exact:
        """Score the training examples in these ``rows`` by their own gradients."""
        examples = self.language.tokenize(self.index.data.frame.iloc[rows])
        turns = TurnPairs(examples, [(0, place) for place in range(len(rows))])
        detail = turns.empty_detail(self.info.modules)
        asked = {place: [(0, place)] for place in range(len(turns.pairs))}
        loader = Loader(turns.examples, plan_batches(turns.examples.lengths, self._batch_tokens))
        with self._network() as network:
            collect(network, self._task, loader, [DetailCollector(query.gradients, asked, detail)])
        whole = turns.joined(detail)
        return Exact(whole.modules.sum(axis=1, dtype=np.float64), whole)

    @contextmanager
    def _network(self) -> Iterator[PreTrainedModel]:
        with tracked_model(self.language.model, self._task) as network:
            share_inputs(tracked_modules(network).values(), self.info.shared_inputs)
            for module in tracked_modules(network).values():
                module.source = self._source
                module.update_factor_args(self._factor_arguments)
                module.update_score_args(self._arguments)
            yield network
