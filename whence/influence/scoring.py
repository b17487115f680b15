"""The loops of scoring: one pass over the training set for many queries, in parts that are saved when done.

Parts can be made by several tasks, each for its share of the training set, and joined by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.module.utils import accumulate_iterations, finalize_iteration, set_mode
from kronfluence.utils.constants import ACCUMULATED_PRECONDITIONED_GRADIENT_NAME
from torch import nn

from whence.data.batching import plan_batches, restore_order
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError
from whence.files import digest_of, require_disk
from whence.influence import layout, memory
from whence.influence.collectors import SCORES, SKETCHES, Collector, ScoreCollector, WhitenedCollector, collect
from whence.influence.factors import require_matching_model
from whence.influence.info import load_factors_info
from whence.influence.loader import Loader
from whence.influence.parts import Parts
from whence.influence.plan import count_parts, logit_tokens, workers
from whence.influence.queries import QueryGradients
from whence.influence.sketch import Sketch
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import tracked_model, tracked_modules
from whence.models.loading import count_processes
from whence.models.trained import TrainedModel

HINT = "set scores.query_gradient_low_rank, or lower scores.train_batch_size and scores.query_batch_size"
NOTHING = "there is nothing to score: no training examples, or no queries; check dataset and prompts"


class Scoring:
    """What is wanted of the training examples under one model with one set of factors, from one pass over them.

    That is their scores on queries, on themselves, and the codes of their gradients' sketches. Only where the gradients
    of all queries do not fit into memory together, the scores on the others take further passes.

    Attributes:
        batches: of the training examples, of ``batch_tokens`` at most; they are dealt to ``data_partitions`` parts.
    """

    def __init__(
        self,
        trained: TrainedModel,
        factors: Path,
        scratch: Path,
        sources: Sequence[Path] = (),
        *,
        queries: TokenizedExamples | None = None,
        own: bool = False,
        sketch: Sketch | None = None,
    ) -> None:
        """Prepare to score the examples of ``trained``; nothing is computed yet.

        Args:
            factors: folder written by :func:`whence.influence.factors.fit_factors`.
            scratch: folder for finished parts.
            sources: the ``scratch`` folders of other tasks of the same work, whose parts are used.
            queries: what to score the examples on; None: nothing.
            own: whether to score them on themselves.
            sketch: how to sketch their gradients (``own`` then comes with it); None: not.

        Raises:
            DataError: there is nothing to score.
            FactorError: the factors are unfinished, damaged or belong to another model.
        """
        self.trained, self.factors, self.queries = trained, factors, queries
        self.model, self.examples, self.config = trained.model, trained.examples, trained.config
        self.own, self.sketch = own or sketch is not None, sketch
        self.info = load_factors_info(factors)
        require_matching_model(self.info, trained)
        if not len(self.examples) or (queries is not None and not len(queries)):
            raise DataError(NOTHING)
        scores, longest = self.config.scores, self.config.general.max_length
        self.query_tokens = scores.query_batch_size * longest
        self.query_batches = plan_batches(queries.lengths, self.query_tokens) if queries else []
        self.batch_tokens = scores.train_batch_size * longest
        self.batches = plan_batches(self.examples.lengths, self.batch_tokens)
        count = count_parts(len(self.batches), scores.data_partitions, workers(self.config))
        self.divided = [self.batches[start::count] for start in range(count)]
        self.arguments = ScoreArguments(
            damping_factor=scores.damping_factor, query_gradient_low_rank=scores.query_gradient_low_rank
        )
        self.task = LanguageModelingTask(self.model, self.info.modules)
        # Read back from JSON, so precisions are names; scoring reads only the strategy of it.
        self.factor_arguments = FactorArguments(**self.info.arguments)
        self.parts = Parts(scratch / SCORES, digest_of(self._decided_by()), [folder / SCORES for folder in sources])

    @property
    def data_partitions(self) -> int:
        """Parts of the training set."""
        return len(self.divided)

    def compute(self, data_parts: Iterable[int] | None = None) -> None:
        """Do every part of the data (or ``data_parts``) that is not done yet."""
        parts = range(len(self.divided)) if data_parts is None else data_parts
        missing = [part for part in parts if not self.done(part)]
        if not missing:
            return
        groups = self.groups(self.at_once())
        for group in groups:
            self._pass([part for part in missing if not self.parts.has(_piece(part, group))], group)
        for part in missing:
            pieces = [_piece(part, group) for group in groups]
            found = self.parts.tensors(pieces[0])
            if self.queries:
                found[SCORES] = torch.cat([self.parts.tensor(piece, SCORES) for piece in pieces], dim=1)
            self.parts.put(_name(part), found)
            for piece in pieces:
                self.parts.drop(piece)

    def done(self, part: int) -> bool:
        """Whether a part of the data is scored."""
        return self.parts.has(_name(part))

    def joined(self, name: str = SCORES) -> torch.Tensor:
        """One of the results, of all parts, in dataset order: ``[queries, examples]`` or ``[examples, ...]``.

        Raises:
            FactorError: a part is missing or damaged.
        """
        whole = torch.cat([self.parts.tensor(_name(part), name) for part in range(len(self.divided))])
        ordered = restore_order(whole, [batch for batches in self.divided for batch in batches])
        return restore_order(ordered.T, self.query_batches) if name == SCORES else ordered

    def query_sketches(self) -> torch.Tensor:
        """Sketches of the queries' whitened gradients, ``[queries, dimensions]`` fp32, in dataset order."""
        return restore_order(self.parts.tensor(SKETCHES, SKETCHES), self.query_batches)

    def at_once(self) -> int:
        """How many query batches are held together in memory, asked before anything is computed.

        Raises:
            ResourceError: not even one fits.
        """
        tokens = max(self.query_tokens if self.queries else 0, self.batch_tokens)
        counts = sorted((len(batch) for batch in self.query_batches), reverse=True)
        given = [(self.examples, self.batches)] + ([(self.queries, self.query_batches)] if self.queries else [])
        logits = [logit_tokens(self.model, self.info.shapes, examples, batches) for examples, batches in given]
        of_logits = None if None in logits else max(filter(None, logits), default=0)
        rank = self.config.scores.query_gradient_low_rank
        room = memory.room(self.model, count_processes(self.config.general))

        def phase(steps: int) -> memory.Phase:
            return memory.score_phase(
                self.model,
                self.info.shapes,
                tokens,
                sum(counts[:steps]),
                rank,
                max(counts, default=0),
                of_logits,
                strategy=self.info.strategy if self.own else None,
                sketches=max(map(len, self.batches)) * self.sketch.dimensions if self.sketch else 0,
            )

        steps = self.config.scores.query_gradient_accumulation_steps
        if steps is None:
            steps = next((number for number in range(len(counts), 1, -1) if phase(number).total <= room), 1)
        steps = min(steps, len(counts))
        memory.require_memory([phase(steps)], room, HINT)
        if self.sketch is not None:  # in parts, and joined
            codes = 2 * len(self.examples) * self.sketch.code_bytes
            require_disk(self.parts.folder, codes, "the codes of the index", "lower index.dimensions")
        return steps

    def groups(self, at_once: int) -> list[range]:
        """The query batches, divided into those whose gradients are held together; one of none without queries."""
        numbers = range(len(self.query_batches))
        return [numbers[start : start + at_once] for start in numbers[::at_once]] if numbers else [numbers]

    @contextmanager
    def query_gradients(self, group: range) -> Iterator[tuple[nn.Module, dict[str, QueryGradients]]]:
        """The tracked model, and the preconditioned gradients of the query batches of ``group`` by module."""
        with tracked_model(self.model, self.task) as network, torch.random.fork_rng():
            for module in tracked_modules(network).values():
                module.source = partial(layout.load_tensor, layout.factors_folder(self.factors, self.info.strategy))
                module.update_factor_args(self.factor_arguments)
                module.update_score_args(self.arguments)
            yield network, self._query_gradients(network, group) if group else {}

    def _pass(self, data_parts: Sequence[int], group: range) -> None:
        """Everything else is taken in the same pass as the scores on the first group of queries."""
        if not data_parts:
            return
        with self.query_gradients(group) as (network, held):
            collectors: list[Collector] = [ScoreCollector(held)] if group else []
            if self.own and group.start == 0:
                collectors.append(self._whitened(network))
            for part in data_parts:
                loader = Loader(self.examples, self.divided[part], description="scores" if group else "self-influence")
                self.parts.put(_piece(part, group), collect(network, self.task, loader, collectors))

    def _whitened(self, network: nn.Module) -> WhitenedCollector:
        """What is taken of the examples' whitened gradients; those of the queries are sketched here and now."""
        collector = WhitenedCollector(self.sketch)
        if self.sketch is not None and self.queries and not self.parts.has(SKETCHES):
            asked = WhitenedCollector(self.sketch, coded=False)
            asked.factors = collector.factors
            loader = Loader(self.queries, self.query_batches)
            self.parts.put(SKETCHES, {SKETCHES: collect(network, self.task, loader, [asked])[SKETCHES]})
        return collector

    def _decided_by(self) -> dict[str, Any]:
        """All that decides the results."""
        return {
            "factors": self.info.fingerprint,
            "arguments": self.arguments.to_dict(),
            "train": self.examples.fingerprint,
            "batches": self.batches,
            "partitions": self.data_partitions,
            "seed": self.config.general.seed,
            "queries": self.queries.fingerprint if self.queries else None,
            "query_batches": self.query_batches,
            "own": self.own,
            "sketch": asdict(self.sketch) if self.sketch else None,
        }

    def _query_gradients(self, network: nn.Module, group: range) -> dict[str, QueryGradients]:
        assert self.queries is not None
        modules = tracked_modules(network)
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


def _name(part: int) -> str:
    return f"data_partition{part}"


def _piece(part: int, group: range) -> str:
    return f"{_name(part)}_query_batches{group.start}to{group.stop}"
