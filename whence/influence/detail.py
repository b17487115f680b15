"""Where scores come from: those of chosen pairs, divided among the training example's turns, its tokens, the modules.

An example's gradient of a linear layer is a sum over its tokens, and a score is a sum over layers, so both divisions
are exact: their sums are the score (Grosse et al. 2023, arXiv:2308.03296, section 3.3). The share of a token is what
its activations and output gradients contribute; attention has carried other tokens into both, so it tells where the
gradient arises, and not what would change if the token were another.

The loss of a conversation is a sum over the assistant's turns. The share of a turn is the score of the same
conversation with the loss of that turn alone, so it does tell what would change without it; the sum is the score, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from whence.data.batching import plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.influence.collectors import Collector, collect
from whence.influence.layout import layer_of, short_names
from whence.influence.linear import FastLinear
from whence.influence.loader import Loader
from whence.influence.queries import QueryGradients, token_scores
from whence.influence.scoring import Scoring

Pair = tuple[int, int]  # row of the query and of the training example, in the order of their datasets
ByExample = dict[int, list[tuple[int, int]]]  # training example -> (place of the query's gradients, number of the pair)


@dataclass(frozen=True)
class Detail:
    """Scores of pairs, divided.

    Attributes:
        tokens: for every pair the shares of the training example's tokens, ``[tokens]`` fp32; their sum is the score.
        modules: the shares of the tracked modules, ``[pairs, modules]`` fp32; their sum is the score too.
        module_names: of the columns of ``modules``.
        turns: for every pair the shares of the training example's turns, ``[turns]`` fp32, as
            :meth:`whence.data.tokenization.TokenizedExamples.turns` has them; as above.
    """

    tokens: list[np.ndarray]
    modules: np.ndarray
    module_names: list[str]
    turns: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def empty(cls, lengths: Sequence[int], module_names: list[str]) -> Detail:
        """With room for the shares of pairs whose training examples have these ``lengths``."""
        shares = [np.zeros(length, np.float32) for length in lengths]
        return cls(shares, np.zeros((len(lengths), len(module_names)), np.float32), module_names)

    def of(self, numbers: Sequence[int]) -> Detail:
        """The pairs with these numbers, in that order."""
        tokens, turns = ([shares[number] for number in numbers] for shares in (self.tokens, self.turns))
        return Detail(tokens, self.modules[numbers], self.module_names, turns)

    def and_then(self, other: Detail) -> Detail:
        """These pairs, and the others behind them."""
        modules = np.concatenate([self.modules, other.modules])
        return Detail([*self.tokens, *other.tokens], modules, self.module_names, [*self.turns, *other.turns])


class TurnPairs:
    """Pairs of queries and turns of training examples, in place of pairs of queries and training examples.

    Attributes:
        examples: the turns of the training examples that are in pairs.
        pairs: a query's row and a row of ``examples``.
    """

    def __init__(self, examples: TokenizedExamples, pairs: Sequence[Pair]) -> None:
        """Take ``pairs`` of queries and ``examples``."""
        rows: dict[int, range] = {}
        count = 0
        for example in sorted({example for _, example in pairs}):
            rows[example] = range(count, count + max(1, len(examples.turns(example))))
            count = rows[example].stop
        self.examples = examples.by_turn(list(rows))
        self.pairs = [(query, row) for query, example in pairs for row in rows[example]]
        stops = np.cumsum([len(rows[example]) for _, example in pairs], dtype=int).tolist()
        self._of_pair = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]

    def empty_detail(self, module_names: list[str]) -> Detail:
        """With room for the shares of ``pairs``."""
        lengths = self.examples.lengths
        return Detail.empty([lengths[row] for _, row in self.pairs], module_names)

    def joined(self, detail: Detail) -> Detail:
        """The detail of the pairs of whole examples, from that of ``pairs``."""
        scores = detail.modules.sum(axis=1)
        modules = np.zeros((len(self._of_pair), len(detail.module_names)), np.float32)
        for number, turns in enumerate(self._of_pair):
            modules[number] = detail.modules[turns].sum(axis=0)
        tokens = [np.sum(detail.tokens[turns], axis=0) for turns in self._of_pair]
        return Detail(tokens, modules, detail.module_names, [scores[turns] for turns in self._of_pair])


def divide_scores(scoring: Scoring, pairs: Sequence[Pair]) -> Detail:
    """Divide the scores of ``pairs`` with the factors, damping and rank of ``scoring``.

    One pass over the training examples of the pairs, a conversation once for each of its turns, for as many queries as
    fit into memory together, in batches as large as those of scoring; query gradients are those of the scores, at hand
    still or computed alike. Other examples share a batch than in scoring, so sums differ from the scores by the
    rounding of the model's precision.

    Raises:
        ResourceError: too little memory, before anything is computed.
    """
    turns = TurnPairs(scoring.examples, pairs)
    detail = turns.empty_detail(scoring.info.modules)
    for group in scoring.groups(scoring.at_once()) if pairs else []:
        by_example = _pairs_by_example(scoring, group, turns.pairs)
        if not by_example:
            continue
        batches = plan_batches(turns.examples.lengths, scoring.batch_tokens, sorted(by_example))
        with scoring.tracked() as network:
            collector = DetailCollector(scoring.asked(network, group).gradients, by_example, detail)
            loader = Loader(turns.examples, batches, description="tokens and modules")
            collect(network, scoring.task, loader, [collector])
    return turns.joined(detail)


class DetailCollector(Collector):
    """Divides the scores of pairs among tokens and modules, and puts the shares into ``detail``."""

    every_token = True

    def __init__(self, queries: Mapping[str, QueryGradients], by_example: ByExample, detail: Detail) -> None:
        self.queries, self.by_example, self.detail = queries, by_example, detail

    def begin(self, indices: Sequence[int], mask: torch.Tensor) -> None:
        self.pairs = [(place, row) for row, example in enumerate(indices) for place, _ in self.by_example[example]]
        self.numbers = [number for example in indices for _, number in self.by_example[example]]
        self.tokens = torch.zeros(len(self.pairs), mask.shape[1], device=mask.device)
        self.modules: dict[str, torch.Tensor] = {}

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        scores = token_scores(self.queries[module.name], activations, gradients, self.pairs)
        self.modules[module.name] = scores.sum(dim=1)
        self.tokens += scores

    def results(self) -> dict[str, torch.Tensor]:
        detail, shares = self.detail, [self.modules[name] for name in self.detail.module_names]
        detail.modules[self.numbers] = torch.stack(shares, dim=1).cpu().numpy()
        for number, row in zip(self.numbers, self.tokens.cpu().numpy(), strict=True):
            detail.tokens[number][:] = row[: len(detail.tokens[number])]  # padding has no gradient
        return {}


def _pairs_by_example(scoring: Scoring, group: range, pairs: Sequence[Pair]) -> ByExample:
    """The pairs whose queries are in the batches of ``group``, by training example."""
    queries = [query for number in group for query in scoring.query_batches[number]]
    places = {query: place for place, query in enumerate(queries)}
    by_example: ByExample = defaultdict(list)
    for number, (query, example) in enumerate(pairs):
        if query in places:
            by_example[example].append((places[query], number))
    return by_example


def token_table(rows: pd.DataFrame, pieces: Sequence[Sequence[str]], detail: Detail) -> pd.DataFrame:
    """One row per pair: ``query_id, example_id, pieces, scores``, the lists as long as the example has tokens.

    Args:
        rows: the pairs, one per row, with ``query_id, example_id``.
        pieces: for every pair the text of the example's tokens.
    """
    return rows[["query_id", "example_id"]].assign(pieces=list(pieces), scores=detail.tokens)


def turn_table(rows: pd.DataFrame, detail: Detail) -> pd.DataFrame:
    """One row per pair and turn, where the training example has several: ``query_id, example_id, turn, score``.

    Args:
        rows: as for :func:`token_table`.
    """
    several = [number for number, shares in enumerate(detail.turns) if len(shares) > 1]
    shares = [detail.turns[number] for number in several]
    repeated = rows[["query_id", "example_id"]].iloc[np.repeat(several, list(map(len, shares)))].reset_index(drop=True)
    return repeated.assign(
        turn=[turn for scores in shares for turn in range(1, len(scores) + 1)],
        score=np.concatenate([*shares, np.zeros(0, np.float32)]),
    )


def module_table(rows: pd.DataFrame, detail: Detail) -> pd.DataFrame:
    """One row per pair and module: ``query_id, example_id, layer, module, score``; ``layer`` is missing outside any."""
    names, short = detail.module_names, short_names(detail.module_names)
    repeated = rows[["query_id", "example_id"]].loc[np.repeat(rows.index, len(names))].reset_index(drop=True)
    return repeated.assign(
        layer=pd.array([layer_of(name) for name in names] * len(rows), dtype="Int64"),
        module=[short[name] for name in names] * len(rows),
        score=detail.modules.ravel(),
    )
