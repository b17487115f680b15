"""The loops of scoring: one pass over the training set for many queries, in parts that are saved when done.

Parts can be made by several tasks, each for its share of the training set, and joined by another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.module.utils import (
    accumulate_iterations,
    finalize_iteration,
    set_mode,
    update_factor_args,
    update_score_args,
)
from kronfluence.score.dot_product import compute_dot_products_with_loader
from kronfluence.score.self import compute_self_scores_with_loaders
from kronfluence.utils.constants import ACCUMULATED_PRECONDITIONED_GRADIENT_NAME, ALL_MODULE_NAME
from torch import nn
from transformers import PreTrainedModel

from whence.data.batching import Batches, restore_order
from whence.data.tokenization import TokenizedExamples
from whence.influence import layout, store
from whence.influence.info import FactorsInfo
from whence.influence.loader import Loader
from whence.influence.partitions import Partitions
from whence.influence.queries import QueryGradients
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import engine_state, tracked_model, tracked_modules

SCORES = "scores"  # the one tensor of a part
EXAMPLES = -1  # the dimension of examples, in matrices and vectors alike


@dataclass
class Scoring:
    """Scores of training examples under one model with one set of factors.

    Attributes:
        batches: of the training examples, of ``batch_tokens`` at most; they are dealt to ``data_partitions`` parts.
        at_once: asked before anything is computed: how many query batches are held together in memory.
    """

    model: PreTrainedModel
    info: FactorsInfo
    factors: Path
    arguments: ScoreArguments
    train: TokenizedExamples
    batches: Batches
    batch_tokens: int
    data_partitions: int
    parts: Partitions
    pad_token_id: int
    seed: int
    at_once: Callable[[], int]

    kind: ClassVar[str]  # begins the names of its parts

    def __post_init__(self) -> None:
        self.divided = [self.batches[start :: self.data_partitions] for start in range(self.data_partitions)]
        self.task = LanguageModelingTask(self.model, self.info.modules)
        self.state = engine_state(self.model.device)
        # Read back from JSON, so precisions are names; scoring reads only the strategy of it.
        self.factor_arguments = FactorArguments(**self.info.arguments)

    def compute(self, data_parts: Iterable[int] | None = None) -> None:
        """Score the examples of every part of the data (or of ``data_parts``) that are not scored yet."""
        parts = range(len(self.divided)) if data_parts is None else data_parts
        missing = [part for part in parts if not self.parts.has(self._name(part))]
        if missing:
            self._score(missing, self.at_once())

    def joined(self) -> torch.Tensor:
        """The scores of all parts, in the order of the dataset.

        Raises:
            FactorError: a part is missing or damaged.
        """
        names = [self._name(part) for part in range(len(self.divided))]
        scores = torch.cat([self.parts.tensor(name, SCORES) for name in names], dim=EXAMPLES)
        return restore_order(scores, [batch for batches in self.divided for batch in batches], dim=EXAMPLES)

    def _score(self, data_parts: list[int], at_once: int) -> None:
        raise NotImplementedError

    def _name(self, part: int) -> str:
        return f"{self.kind}_data_partition{part}"

    def _prepare(self, network: nn.Module) -> None:
        for module in tracked_modules(network).values():
            module.source = partial(store.load_one, layout.factors_folder(self.factors, self.info.strategy))

    def _train_loader(self, part: int, description: str) -> Loader:
        return Loader(self.train, self.divided[part], self.pad_token_id, description=description)


@dataclass
class SelfScoring(Scoring):
    """Scores of training examples on themselves, ``[examples]``."""

    kind = "self"

    def _score(self, data_parts: list[int], at_once: int) -> None:
        for part in data_parts:
            with tracked_model(self.model, self.task) as network:
                self._prepare(network)
                scores = compute_self_scores_with_loaders(
                    loaded_factors={},  # the modules read their own
                    model=network,
                    state=self.state,
                    task=self.task,
                    train_loader=self._train_loader(part, "self-influence"),
                    score_args=self.arguments,
                    factor_args=self.factor_arguments,
                    tracked_module_names=self.info.modules,
                    disable_tqdm=True,
                )[ALL_MODULE_NAME]
            self.parts.put(self._name(part), {SCORES: scores})


@dataclass
class PairwiseScoring(Scoring):
    """Scores of training examples on queries, ``[queries, examples]``."""

    queries: TokenizedExamples
    query_batches: Batches

    kind = "pairwise"

    def joined(self) -> torch.Tensor:
        return restore_order(super().joined(), self.query_batches)

    def _score(self, data_parts: list[int], at_once: int) -> None:
        groups = self.groups(at_once)
        for group in groups:
            self._score_group(group, [part for part in data_parts if not self.parts.has(self._piece(part, group))])
        for part in data_parts:
            pieces = [self._piece(part, group) for group in groups]
            self.parts.put(self._name(part), {SCORES: torch.cat([self.parts.tensor(one, SCORES) for one in pieces])})
            for piece in pieces:
                self.parts.drop(piece)

    def _score_group(self, group: range, data_parts: list[int]) -> None:
        """Score the queries of a group of batches, whose gradients are held together, on parts of the data."""
        if not data_parts:
            return
        with self.query_gradients(group) as (network, held):
            for part in data_parts:
                self.parts.put(self._piece(part, group), {SCORES: self._products(network, held, part)})

    def _piece(self, part: int, group: range) -> str:
        return f"{self._name(part)}_query_batches{group.start}to{group.stop}"

    def groups(self, at_once: int) -> list[range]:
        """The query batches, divided into those whose gradients are held together."""
        numbers = range(len(self.query_batches))
        return [numbers[start : start + at_once] for start in numbers[::at_once]]

    @contextmanager
    def query_gradients(self, group: range) -> Iterator[tuple[nn.Module, dict[str, QueryGradients]]]:
        """The tracked model, and the preconditioned gradients of the query batches of ``group`` by module."""
        with tracked_model(self.model, self.task) as network, torch.random.fork_rng():
            self._prepare(network)
            yield network, self._query_gradients(network, group)

    def _query_gradients(self, network: nn.Module, group: range) -> dict[str, QueryGradients]:
        modules = tracked_modules(network)
        update_factor_args(network, self.factor_arguments)
        update_score_args(network, self.arguments)
        set_mode(network, ModuleMode.PRECONDITION_GRADIENT, self.info.modules, release_memory=True)
        batches = [self.query_batches[number] for number in group]
        loader = Loader(self.queries, batches, self.pad_token_id, description="query gradients")
        for module in modules.values():
            module.expected_queries = len(loader.dataset)
        for number, batch in zip(group, loader, strict=True):
            # The low-rank approximation is randomised; it must not depend on what is held beside a batch.
            torch.manual_seed(self.seed + number)
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            self.task.compute_measurement(batch, network).backward()
            finalize_iteration(network, self.info.modules)
            accumulate_iterations(network, self.info.modules)
        return {name: module.storage[ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] for name, module in modules.items()}

    def _products(self, network: nn.Module, held: dict[str, QueryGradients], part: int) -> torch.Tensor:
        for name, module in tracked_modules(network).items():  # kronfluence forgets them after every pass
            module.storage[ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = held[name]
        scores: torch.Tensor = compute_dot_products_with_loader(
            model=network,
            task=self.task,
            state=self.state,
            train_loader=self._train_loader(part, "scores"),
            factor_args=self.factor_arguments,
            score_args=self.arguments,
            tracked_module_names=self.info.modules,
            scaler=torch.amp.GradScaler(enabled=False),
            disable_tqdm=True,
        )[ALL_MODULE_NAME]
        return scores
