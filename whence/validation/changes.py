"""What retrainings change about the training data. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whence.data.tokenization import TokenizedExamples


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
