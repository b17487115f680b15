"""The loops of scoring: one pass over the training set for many queries, in parts that are saved when done.

Parts can be made by several tasks, each for its share of the training set, and joined by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

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

from whence.data.batching import plan_batches, restore_order
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError
from whence.files import digest_of
from whence.influence import layout, memory
from whence.influence.factors import require_matching_model
from whence.influence.info import load_factors_info
from whence.influence.loader import Loader
from whence.influence.parts import Parts
from whence.influence.plan import count_parts, logit_tokens
from whence.influence.queries import QueryGradients
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import engine_state, tracked_model, tracked_modules
from whence.models.trained import TrainedModel

HINT = "set scores.query_gradient_low_rank, or lower scores.train_batch_size and scores.query_batch_size"
NOTHING = "there is nothing to score: no training examples, or no queries; check dataset and prompts"
SCORES = "scores"  # the one tensor of a part
EXAMPLES = -1  # the dimension of examples, in matrices and vectors alike


class Scoring:
    """Scores of training examples under one model with one set of factors.

    Attributes:
        batches: of the training examples, of ``batch_tokens`` at most; they are dealt to ``data_partitions`` parts.
    """

    kind: ClassVar[str]  # begins the names of its parts

    def __init__(self, trained: TrainedModel, factors: Path, scratch: Path, sources: Sequence[Path] = ()) -> None:
        """Prepare to score the examples of ``trained``; nothing is computed yet.

        Args:
            factors: folder written by :func:`whence.influence.factors.fit_factors`.
            scratch: folder for finished parts.
            sources: the ``scratch`` folders of other tasks of the same work, whose parts are used.

        Raises:
            DataError: there is nothing to score.
            FactorError: the factors are unfinished, damaged or belong to another model.
        """
        self.trained, self.factors = trained, factors
        self.model, self.examples, self.config = trained.model, trained.examples, trained.config
        self.info = load_factors_info(factors)
        require_matching_model(self.info, trained)
        if not len(self.examples):
            raise DataError(NOTHING)
        self.batch_tokens = self.config.scores.train_batch_size * self.config.general.max_length
        self.batches = plan_batches(self.examples.lengths, self.batch_tokens)
        wanted, tasks = self.config.scores.data_partitions, self.config.general.parallel_tasks
        count = count_parts(len(self.batches), wanted, tasks)
        self.divided = [self.batches[start::count] for start in range(count)]
        self.arguments = self._arguments()
        self.task = LanguageModelingTask(self.model, self.info.modules)
        self.state = engine_state(trained.device)
        # Read back from JSON, so precisions are names; scoring reads only the strategy of it.
        self.factor_arguments = FactorArguments(**self.info.arguments)
        key = digest_of(self._decided_by())
        self.parts = Parts(scratch / self.kind, key, [folder / self.kind for folder in sources])

    @property
    def data_partitions(self) -> int:
        """Parts of the training set."""
        return len(self.divided)

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

    def at_once(self) -> int:
        """How many query batches are held together in memory, asked before anything is computed.

        Raises:
            ResourceError: not even one fits.
        """
        raise NotImplementedError

    def _score(self, data_parts: list[int], at_once: int) -> None:
        raise NotImplementedError

    def _arguments(self) -> ScoreArguments:
        return ScoreArguments(damping_factor=self.config.scores.damping_factor)

    def _decided_by(self) -> dict[str, Any]:
        """All that decides the scores."""
        return {
            "factors": self.info.fingerprint,
            "arguments": self.arguments.to_dict(),
            "train": self.examples.fingerprint,
            "batches": self.batches,
            "partitions": self.data_partitions,
            "seed": self.config.general.seed,
        }

    def _room(self) -> int:
        """Bytes for weights and everything else."""
        return memory.available_memory(self.trained.device) + memory.weight_bytes(self.model)

    def _name(self, part: int) -> str:
        return f"{self.kind}_data_partition{part}"

    def _prepare(self, network: nn.Module) -> None:
        for module in tracked_modules(network).values():
            module.source = partial(layout.load_tensor, layout.factors_folder(self.factors, self.info.strategy))

    def _train_loader(self, part: int, description: str) -> Loader:
        return Loader(self.examples, self.divided[part], description=description)


class SelfScoring(Scoring):
    """Scores of training examples on themselves, ``[examples]``."""

    kind = "self"

    def at_once(self) -> int:
        """1: the batch is its own query."""
        logits = logit_tokens(self.model, self.info.shapes, self.examples, self.batches)
        strategy, tokens = self.info.strategy, self.batch_tokens
        phase = memory.self_score_phase(self.model, self.info.shapes, strategy, tokens, logits)
        memory.require_memory([phase], self._room(), HINT)
        return 1

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


class PairwiseScoring(Scoring):
    """Scores of training examples on queries, ``[queries, examples]``."""

    kind = "pairwise"

    def __init__(
        self,
        trained: TrainedModel,
        factors: Path,
        queries: TokenizedExamples,
        scratch: Path,
        sources: Sequence[Path] = (),
    ) -> None:
        if not len(queries):
            raise DataError(NOTHING)
        self.queries = queries
        self.query_tokens = trained.config.scores.query_batch_size * trained.config.general.max_length
        self.query_batches = plan_batches(queries.lengths, self.query_tokens)
        super().__init__(trained, factors, scratch, sources)

    def at_once(self) -> int:
        tokens = max(self.query_tokens, self.batch_tokens)
        counts = sorted((len(batch) for batch in self.query_batches), reverse=True)
        logits = [
            logit_tokens(self.model, self.info.shapes, examples, batches)
            for examples, batches in ((self.queries, self.query_batches), (self.examples, self.batches))
        ]
        of_logits = None if None in logits else max(filter(None, logits), default=0)
        rank, room = self.config.scores.query_gradient_low_rank, self._room()

        def phase(steps: int) -> memory.Phase:
            queries = sum(counts[:steps])
            return memory.score_phase(self.model, self.info.shapes, tokens, queries, rank, counts[0], of_logits)

        steps = self.config.scores.query_gradient_accumulation_steps
        if steps is None:
            steps = next((number for number in range(len(counts), 1, -1) if phase(number).total <= room), 1)
        steps = min(steps, len(counts))
        memory.require_memory([phase(steps)], room, HINT)
        return steps

    def _arguments(self) -> ScoreArguments:
        scores = self.config.scores
        return ScoreArguments(
            damping_factor=scores.damping_factor, query_gradient_low_rank=scores.query_gradient_low_rank
        )

    def _decided_by(self) -> dict[str, Any]:
        return super()._decided_by() | {"queries": self.queries.fingerprint, "query_batches": self.query_batches}

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
        loader = Loader(self.queries, batches, description="query gradients")
        for module in modules.values():
            module.expected_queries = len(loader.dataset)
        for number, batch in zip(group, loader, strict=True):
            # The low-rank approximation is randomised; it must not depend on what is held beside a batch.
            torch.manual_seed(self.config.general.seed + number)
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
