"""Tail patch: train a little further on a query's top examples, and see whether its answer becomes more probable.

The measure of TrackStar (Chang et al., 2024, arXiv:2410.17413): no retraining, so cheap enough for any model that can
be fine-tuned at all. It tests whether the examples *can* push the model there now, not that they did in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from whence.data.tokenization import IGNORED, TokenizedExamples
from whence.estimates import Bootstrap
from whence.evaluation.outcomes import sequence_logprobs
from whence.progress import progress
from whence.validation.evidence import Measure, Method, NotMeasured

NAME = "tail_patch"
CERTAIN = 0.9  # probability of an answer that leaves next to nothing for a step to add
FEWEST = 3  # queries for an interval


def tail_patch_changes(
    model: PreTrainedModel,
    train: TokenizedExamples,
    queries: TokenizedExamples,
    top: Mapping[Method, np.ndarray],
    learning_rate: float,
    steps: int,
) -> dict[Method, np.ndarray]:
    """The change of each query's log-probability by further training on its top examples, by method ``[queries]``.

    A step is one of Adam without weight decay from fresh state, on the mean token loss over the query's top examples,
    as in training. The weights are put back after every query; the model ends as it began.

    Args:
        model: the fine-tuned model, in float32.
        top: by method the top examples of each query, ``[queries, k]``.
        learning_rate: of the steps.
        steps: optimizer steps on the same examples.
    """
    model.eval()  # no dropout: the change is to come from the examples alone
    weights: list[torch.Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
    originals = [weight.detach().clone() for weight in weights]
    changes = {method: np.zeros(len(queries)) for method in top}
    with progress(total=len(queries) * len(top), desc="tail patch", unit="patch") as bar:
        for row in range(len(queries)):
            query = queries.batch([row])
            before = _logprob(model, query)
            for method, examples in top.items():
                batch = train.batch(examples[row].tolist())
                _train_on(model, weights, batch, learning_rate, steps)
                changes[method][row] = _logprob(model, query) - before
                with torch.no_grad():
                    torch._foreach_copy_(weights, originals)
                bar.update()
    return changes


def with_room(logprobs: np.ndarray) -> np.ndarray:
    """The rows of the queries whose answers can still become more probable: only there can a step show anything.

    Args:
        logprobs: of each query's answer under the fine-tuned model, ``[queries]``.
    """
    return np.flatnonzero(logprobs < math.log(CERTAIN))


def tail_patch_measure(
    changes: Mapping[Method, np.ndarray], of: int, k: int, learning_rate: float, steps: int, bootstrap: Bootstrap
) -> Measure | NotMeasured:
    """The mean change over queries, with intervals; not measured where all but a few of them have no room to rise.

    Args:
        changes: of the queries with room, by method.
        of: how many queries there are in all.
    """
    count = len(next(iter(changes.values())))
    left_out = f"{of - count} of {of} answers are certain already (probability of {CERTAIN:.0%} or more)"
    if count < FEWEST:
        return NotMeasured(name=NAME, why=f"{left_out}, so no further step could make them more probable")
    times = "one further step" if steps == 1 else f"{steps} further steps"
    return Measure(
        name=NAME,
        title=f"Tail patch: {times} on a query's top {k}",
        explanation=f"Change of the log-probability (nats) of a query's answer by {times} of Adam at learning rate "
        f"{learning_rate:g} on its top {k} examples (Chang et al., 2024)."
        + (f" Left out: {left_out}." if count < of else ""),
        higher_is_better=True,
        methods=bootstrap.means(changes),
    )


def _train_on(
    model: PreTrainedModel,
    weights: Sequence[torch.Tensor],
    batch: dict[str, torch.Tensor],
    learning_rate: float,
    steps: int,
) -> None:
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    counted = (batch["labels"][:, 1:] != IGNORED).sum()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        (-sequence_logprobs(model, batch).sum() / counted.to(model.device)).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def _logprob(model: PreTrainedModel, query: dict[str, torch.Tensor]) -> float:
    return float(sequence_logprobs(model, query)[0])
