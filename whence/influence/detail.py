"""Where scores come from: those of chosen pairs, divided among the training example's tokens and the modules.

An example's gradient of a linear layer is a sum over its tokens, and a score is a sum over layers, so both divisions
are exact: their sums are the score (Grosse et al. 2023, arXiv:2308.03296, section 3.3). The share of a token is what
its activations and output gradients contribute; attention has carried other tokens into both, so it tells where the
gradient arises, and not what would change if the token were another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from whence.data.batching import plan_batches
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
    """

    tokens: list[np.ndarray]
    modules: np.ndarray
    module_names: list[str]

    @classmethod
    def empty(cls, lengths: Sequence[int], module_names: list[str]) -> Detail:
        """With room for the shares of pairs whose training examples have these ``lengths``."""
        shares = [np.zeros(length, np.float32) for length in lengths]
        return cls(shares, np.zeros((len(lengths), len(module_names)), np.float32), module_names)


def divide_scores(scoring: Scoring, pairs: Sequence[Pair]) -> Detail:
    """Divide the scores of ``pairs`` with the factors, damping and rank of ``scoring``.

    One pass over the training examples of the pairs for as many queries as fit into memory together, in batches as
    large as those of scoring; query gradients are those of the scores, at hand still or computed alike. Other
    examples share a batch than in scoring, so sums differ from the scores by the rounding of the model's precision.

    Raises:
        ResourceError: too little memory, before anything is computed.
    """
    lengths = scoring.examples.lengths
    detail = Detail.empty([lengths[example] for _, example in pairs], scoring.info.modules)
    for group in scoring.groups(scoring.at_once()) if pairs else []:
        by_example = _pairs_by_example(scoring, group, pairs)
        if not by_example:
            continue
        batches = plan_batches(lengths, scoring.batch_tokens, sorted(by_example))
        with scoring.tracked() as network:
            collector = DetailCollector(scoring.asked(network, group).gradients, by_example, detail)
            loader = Loader(scoring.examples, batches, description="tokens and modules")
            collect(network, scoring.task, loader, [collector])
    return detail


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


def module_table(rows: pd.DataFrame, detail: Detail) -> pd.DataFrame:
    """One row per pair and module: ``query_id, example_id, layer, module, score``; ``layer`` is missing outside any."""
    names, short = detail.module_names, short_names(detail.module_names)
    repeated = rows[["query_id", "example_id"]].loc[np.repeat(rows.index, len(names))].reset_index(drop=True)
    return repeated.assign(
        layer=pd.array([layer_of(name) for name in names] * len(rows), dtype="Int64"),
        module=[short[name] for name in names] * len(rows),
        score=detail.modules.ravel(),
    )
