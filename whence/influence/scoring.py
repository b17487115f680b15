"""The loops of scoring: one pass over the training set for many queries, in parts that are saved when done.

Parts can be made by several tasks, each for its share of the training set, and joined by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from transformers import PreTrainedModel

from whence.data.batching import plan_batches, restore_order
from whence.data.tokenization import TokenizedExamples
from whence.errors import DataError
from whence.files import digest_of, require_disk
from whence.influence import layout, memory
from whence.influence.collectors import (
    COSINES,
    NORMS,
    PRODUCTS,
    SCORES,
    VECTORS,
    Collector,
    EmbeddingCollector,
    QueryCollector,
    ScoreCollector,
    WhitenedCollector,
    Whitening,
    collect,
)
from whence.influence.factors import require_matching_model
from whence.influence.info import load_factors_info
from whence.influence.loader import Loader
from whence.influence.parts import Parts
from whence.influence.plan import count_parts, logit_tokens, workers
from whence.influence.queries import QueryGradients
from whence.influence.shared import share_inputs
from whence.influence.sketch import Sketch
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import tracked_model, tracked_modules
from whence.models.loading import count_processes
from whence.models.trained import TrainedModel

HINT = "set scores.query_gradient_low_rank, or lower scores.train_batch_size and scores.query_batch_size"
NOTHING = "there is nothing to score: no training examples, or no queries; check dataset and prompts"


PAIRS = (SCORES, PRODUCTS, COSINES)  # results by training example and query, of the queries that are held


class Asked(NamedTuple):
    """What is held of the queries in some of their batches, while the training examples are met.

    Attributes:
        group: numbers of the batches.
        gradients: preconditioned, by module and, where there are baselines, plain ones behind them.
        queries: how many there are.
        vectors: their embeddings, where there are baselines.
    """

    group: range
    gradients: Mapping[str, QueryGradients]
    queries: int
    vectors: torch.Tensor | None


class Scoring:
    """What is wanted of the training examples under one model with one set of factors, from one pass over them.

    That is their scores on queries, on themselves, the codes of their gradients' sketches, and what the evidence
    compares with: products of plain gradients, and of embeddings. Only where the gradients of all queries do not fit
    into memory together, what is taken of pairs takes further passes.

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
        baselines: bool = False,
    ) -> None:
        """Prepare to score the examples of ``trained``; nothing is computed yet.

        Args:
            factors: folder written by :func:`whence.influence.factors.fit_factors`.
            scratch: folder for finished parts.
            sources: the ``scratch`` folders of other tasks of the same work, whose parts are used.
            queries: what to score the examples on; None: nothing.
            own: whether to score them on themselves.
            sketch: how to sketch their gradients (``own`` then comes with it); None: not.
            baselines: whether to compare them with the queries by plain gradients and by embeddings, too (as above).

        Raises:
            DataError: there is nothing to score.
            FactorError: the factors are unfinished, damaged or belong to another model.
        """
        self.trained, self.factors, self.queries = trained, factors, queries
        self.model, self.examples, self.config = trained.model, trained.examples, trained.config
        self.own, self.sketch, self.baselines = own or sketch is not None or baselines, sketch, baselines
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
        self._asked: Asked | None = None
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
            for name in PAIRS:
                if name in found:
                    found[name] = torch.cat([self.parts.tensor(piece, name) for piece in pieces], dim=1)
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
        return restore_order(ordered.T, self.query_batches) if name in PAIRS else ordered

    def of_queries(self, name: str) -> torch.Tensor:
        """One of the results of the queries' own pass, ``[queries, ...]`` in dataset order.

        Raises:
            FactorError: a part is missing or damaged.
        """
        found = [self.parts.tensor(_query_part(number), name) for number in range(len(self.query_batches))]
        return restore_order(torch.cat(found), self.query_batches)

    def gradient_cosines(self) -> torch.Tensor:
        """Cosines of plain gradients ``[queries, examples]`` fp32, in dataset order; 0 where a gradient vanishes."""
        norms = torch.outer(self.of_queries(NORMS).double(), self.joined(NORMS).double()).sqrt()
        return torch.where(norms > 0, self.joined(PRODUCTS) / norms, 0).float()

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
                (1 + self.baselines) * sum(counts[:steps]),
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
    def tracked(self) -> Iterator[PreTrainedModel]:
        """The model with tracked modules that read these factors."""
        with tracked_model(self.model, self.task) as network, torch.random.fork_rng():
            share_inputs(tracked_modules(network).values(), self.info.shared_inputs)
            for module in tracked_modules(network).values():
                module.source = partial(layout.load_tensor, layout.factors_folder(self.factors, self.info.strategy))
                module.update_factor_args(self.factor_arguments)
                module.update_score_args(self.arguments)
            yield network

    def asked(self, network: PreTrainedModel, group: range) -> Asked:
        """What is held of the query batches of ``group``; of those that were asked for last it is at hand still."""
        if self._asked is None or self._asked.group != group:
            self._asked = None  # its room is needed
            self._asked = self._query_gradients(network, group, Whitening(self.sketch, held=False))
        return self._asked

    def _pass(self, data_parts: Sequence[int], group: range) -> None:
        """What is not of pairs is taken in the same pass as the scores on the first group of queries."""
        if not data_parts:
            return
        with self.tracked() as network:
            whitening, collectors = Whitening(self.sketch), list[Collector]()
            if group:
                self._asked = None
                self._asked = self._query_gradients(network, group, whitening if self.own else Whitening(held=False))
                collectors.append(ScoreCollector(self._asked.gradients, self._asked.queries))
                if self._asked.vectors is not None:
                    collectors.append(EmbeddingCollector(self._asked.vectors))
            if self.own and group.start == 0:
                collectors.append(WhitenedCollector(whitening))
            del whitening
            for part in data_parts:
                self.parts.put(_piece(part, group), self._examples(network, part, collectors))

    def _query_gradients(self, network: PreTrainedModel, group: range, whitening: Whitening) -> Asked:
        """One pass over queries; what is of each alone goes into a part for its batch."""
        assert self.queries is not None
        batches = [self.query_batches[number] for number in group]
        # The low-rank approximation is randomised; it must not depend on what is held beside a batch.
        seeds = (self.config.general.seed + number for number in group)
        count = sum(map(len, batches))
        collector = QueryCollector(whitening, count, self.arguments.query_gradient_low_rank, self.baselines, seeds)
        collectors = [collector, *([EmbeddingCollector()] if self.baselines else [])]
        found = collect(network, self.task, Loader(self.queries, batches, description="query gradients"), collectors)
        if self.sketch is not None or self.baselines:
            pieces = zip(*(tensor.split([len(batch) for batch in batches]) for tensor in found.values()), strict=True)
            for number, tensors in zip(group, pieces, strict=True):
                self.parts.put(_query_part(number), dict(zip(found, tensors, strict=True)))
        return Asked(group, collector.gradients, count, found.get(VECTORS))

    def _examples(
        self, network: PreTrainedModel, part: int, collectors: Sequence[Collector]
    ) -> dict[str, torch.Tensor]:
        """What the collectors take of a part of the training examples."""
        description = "scores" if self.queries else "self-influence"
        loader = Loader(self.examples, self.divided[part], description=description)
        return collect(network, self.task, loader, collectors)

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
            "baselines": self.baselines,
        }


def _name(part: int) -> str:
    return f"data_partition{part}"


def _piece(part: int, group: range) -> str:
    return f"{_name(part)}_query_batches{group.start}to{group.stop}"


def _query_part(number: int) -> str:
    return f"query_batch{number}"
