"""Counterfactual retraining: leave a query's most helpful examples out, train again, and see how much worse it gets.

The measure closest to what influence claims (Koh & Liang, 2017; as brittleness in Ilyas et al., 2022). Besides the k
examples everything stays: the seed, the order, the steps. The unchanged retraining and those without random examples
are shared by all queries. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whence.estimates import Bootstrap
from whence.influence.ranking import best_first
from whence.validation.evidence import Measure, Method

if TYPE_CHECKING:
    from whence.data.tokenization import TokenizedExamples

NAME = "counterfactual"


@dataclass(frozen=True)
class Change:
    """How a retraining differs from the run's own: its seed, and the examples.

    Attributes:
        seed: of the order of the examples.
        without: these are absent from their batches; order, steps and everything else stay as they were.
        only: train on these alone, in an order of their own, for as many epochs; None: on all.
    """

    seed: int
    without: tuple[int, ...] = ()
    only: tuple[int, ...] | None = None

    def examples(self, train_examples: TokenizedExamples) -> TokenizedExamples:
        """The training examples as this retraining sees them."""
        if self.only is not None:
            return train_examples.subset(self.only)
        return train_examples.without(self.without)


Outcomes = Mapping[Change, np.ndarray]  # log-probability of each query's answer, [queries]


@dataclass(frozen=True)
class Plan:
    """Which examples are left out for which queries.

    Attributes:
        queries: the chosen ones, ascending.
        seeds: of the retrainings.
        removed: by method the examples left out for each chosen query.
        random: sets of examples left out for comparison.
    """

    queries: tuple[int, ...]
    seeds: tuple[int, ...]
    removed: dict[Method, list[tuple[int, ...]]]
    random: list[tuple[int, ...]]

    @property
    def changes(self) -> list[Change]:
        """All retrainings, those shared by all queries first."""
        sets = [(), *self.random, *(examples for of_method in self.removed.values() for examples in of_method)]
        return [Change(seed, without=examples) for examples in sets for seed in self.seeds]


def plan(scores: Mapping[Method, np.ndarray], *, k: int, queries: int, seeds: int, random_sets: int, seed: int) -> Plan:
    """Choose queries and random examples by ``seed``, and each method's top ``k`` by its scores.

    Args:
        scores: by method ``[queries, examples]``, positive is helpful.
        queries: how many to choose; all where there are fewer.
        seeds: how many to retrain with, beginning with ``seed``.
        random_sets: random sets of k examples.
    """
    count, examples = next(iter(scores.values())).shape
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:queries])
    size = min(k, examples)
    return Plan(
        queries=tuple(chosen.tolist()),
        seeds=tuple(range(seed, seed + seeds)),
        removed={method: [_ascending(row) for row in best_first(m[chosen], size)] for method, m in scores.items()},
        random=[
            _ascending(np.random.default_rng((seed, number)).choice(examples, size, replace=False))
            for number in range(random_sets)
        ],
    )


def harm(planned: Plan, outcomes: Outcomes) -> dict[Method, np.ndarray]:
    """How much less log-probability each chosen query's answer has without the examples, ``[queries, seeds]``.

    Positive where leaving them out hurts. ``random`` is the mean over the random sets.

    Args:
        outcomes: of every retraining of the plan.
    """

    def lost(query: int, examples: tuple[int, ...]) -> list[float]:
        return [
            float(outcomes[Change(seed)][query] - outcomes[Change(seed, without=examples)][query])
            for seed in planned.seeds
        ]

    result: dict[Method, np.ndarray] = {
        method: np.array([lost(query, examples) for query, examples in zip(planned.queries, sets, strict=True)])
        for method, sets in planned.removed.items()
    }
    of_random = [[lost(query, examples) for examples in planned.random] for query in planned.queries]
    return result | {"random": np.array(of_random).mean(axis=1)}


def counterfactual_measure(harm: Mapping[Method, np.ndarray], k: int, examples: int, bootstrap: Bootstrap) -> Measure:
    """The mean harm of leaving examples out, with intervals over queries and seeds.

    Args:
        harm: by method ``[queries, seeds]``, as :func:`harm` has it.
        examples: in the training data.
    """
    return Measure(
        name=NAME,
        title=f"Retrained without the top {k}: harm to the query",
        explanation=f"How much less log-probability (nats) a query's answer has after training without {k} of the "
        f"{examples} examples, seed, order and everything else being the same; intervals over queries and seeds.",
        higher_is_better=True,
        methods={method: bootstrap.crossed_mean(values) for method, values in harm.items()},
    )


def _ascending(examples: np.ndarray) -> tuple[int, ...]:
    return tuple(np.sort(examples).tolist())
