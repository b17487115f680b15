"""Where scores come from: those of chosen pairs, divided among the training example's tokens and the modules.

An example's gradient of a linear layer is a sum over its tokens, and a score is a sum over layers, so both divisions
are exact: their sums are the score (Grosse et al. 2023, arXiv:2308.03296, section 3.3). The share of a token is what
its activations and output gradients contribute; attention has carried other tokens into both, so it tells where the
gradient arises, and not what would change if the token were another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.module.utils import set_mode
from kronfluence.utils.constants import ACCUMULATED_PRECONDITIONED_GRADIENT_NAME
from torch import nn

from whence.data.batching import plan_batches
from whence.influence.layout import layer_of, short_names
from whence.influence.loader import Loader
from whence.influence.queries import BatchDetail, QueryGradients
from whence.influence.scoring import PairwiseScoring
from whence.influence.tracked import tracked_modules

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


def divide_scores(scoring: PairwiseScoring, pairs: Sequence[Pair]) -> Detail:
    """Divide the scores of ``pairs`` with the factors, damping and rank of ``scoring``.

    One pass over the training examples of the pairs for as many queries as fit into memory together, in batches as
    large as those of scoring; query gradients are computed as for the scores, their random choices included. Other
    examples share a batch than in scoring, so sums differ from the scores by the rounding of the model's precision.

    Raises:
        ResourceError: too little memory, before anything is computed.
    """
    names = scoring.info.modules
    tokens = [np.zeros(scoring.examples.lengths[example], np.float32) for _, example in pairs]
    modules = np.zeros((len(pairs), len(names)), np.float32)
    for group in scoring.groups(scoring.at_once()) if pairs else []:
        by_example = _pairs_by_example(scoring, group, pairs)
        if not by_example:
            continue
        batches = plan_batches(scoring.examples.lengths, scoring.batch_tokens, sorted(by_example))
        with scoring.query_gradients(group) as (network, gradients):
            _begin(scoring, network, gradients)
            loader = Loader(scoring.examples, batches, description="tokens and modules")
            for indices, batch in zip(batches, loader, strict=True):
                numbers, shares = _divide_batch(scoring, network, batch, indices, by_example)
                modules[numbers] = torch.stack([shares.modules[name] for name in names], dim=1).cpu().numpy()
                for number, row in zip(numbers, shares.tokens.cpu().numpy(), strict=True):
                    tokens[number][:] = row[: len(tokens[number])]  # padding has no gradient
    return Detail(tokens, modules, names)


def _pairs_by_example(scoring: PairwiseScoring, group: range, pairs: Sequence[Pair]) -> ByExample:
    """The pairs whose queries are in the batches of ``group``, by training example."""
    queries = [query for number in group for query in scoring.query_batches[number]]
    places = {query: place for place, query in enumerate(queries)}
    by_example: ByExample = defaultdict(list)
    for number, (query, example) in enumerate(pairs):
        if query in places:
            by_example[example].append((places[query], number))
    return by_example


def _begin(scoring: PairwiseScoring, network: nn.Module, gradients: dict[str, QueryGradients]) -> None:
    set_mode(network, ModuleMode.PAIRWISE_SCORE, scoring.info.modules, release_memory=False)
    for name, module in tracked_modules(network).items():
        module.storage[ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = gradients[name]


def _divide_batch(
    scoring: PairwiseScoring,
    network: nn.Module,
    batch: dict[str, torch.Tensor],
    indices: list[int],
    pairs_of: ByExample,
) -> tuple[list[int], BatchDetail]:
    """The shares in the scores of a batch of training examples, and the numbers of the pairs they belong to."""
    batch = {name: tensor.to(scoring.model.device) for name, tensor in batch.items()}
    ids = batch["input_ids"]
    pairs = [(place, row) for row, example in enumerate(indices) for place, _ in pairs_of[example]]
    detail = BatchDetail(pairs, torch.zeros(len(pairs), ids.shape[1], device=ids.device))
    for module in tracked_modules(network).values():
        module.detail = detail
    network.zero_grad(set_to_none=True)
    scoring.task.compute_train_loss(batch, network).backward()
    return [number for example in indices for _, number in pairs_of[example]], detail


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
