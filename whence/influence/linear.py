"""The tracked modules that kronfluence's registry is given: linear layers with Whence's trackers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.module.linear import TrackedLinear
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.utils.constants import (
    ACTIVATION_COVARIANCE_MATRIX_NAME,
    EIGENDECOMPOSITION_FACTOR_NAMES,
    GRADIENT_COVARIANCE_MATRIX_NAME,
    LAMBDA_FACTOR_NAMES,
    LAMBDA_MATRIX_NAME,
)

from whence.influence.products import by_example, symmetric
from whence.influence.shared import SharedInput
from whence.influence.trackers import (
    CollectTracker,
    PairTracker,
    RotatedLambdaTracker,
    SummedCovarianceTracker,
)

if TYPE_CHECKING:
    from whence.influence.collectors import Collector

TRACKERS = {
    ModuleMode.COVARIANCE: SummedCovarianceTracker,
    ModuleMode.LAMBDA: RotatedLambdaTracker,
    ModuleMode.PAIRWISE_SCORE: CollectTracker,
}
HALVES = (ACTIVATION_COVARIANCE_MATRIX_NAME, GRADIENT_COVARIANCE_MATRIX_NAME)

FactorSource = Callable[[str, str], torch.Tensor]  # factor name, module name -> tensor on the CPU


class FastLinear(TrackedLinear):
    """kronfluence's tracked linear layer with Whence's trackers; for ``nn.Linear`` and transformers' ``Conv1D``.

    A ``Conv1D`` is a linear layer that stores its weight transposed, and nothing here looks at the weight.

    Attributes:
        source: where factors are read from when gradients are preconditioned, a module at a time.
        batch_shape: ``(batch, tokens)`` of the model's own input.
        collectors: take what they want of a pass.
        input_of: the first module that sees the same input.
        shared: what is made once of that input, where other modules of the pass see it too.
        sums_inputs: whether this is the module that sums the input's covariance.
    """

    source: FactorSource | None = None
    batch_shape: tuple[int, int] = (0, 0)
    collectors: Sequence[Collector] = ()
    input_of: str = ""
    shared: SharedInput | None = None
    sums_inputs: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input_of = self.name
        self._trackers |= {mode: tracker(self) for mode, tracker in TRACKERS.items()}

    def get_factor(self, factor_name: str) -> torch.Tensor | None:
        factor = super().get_factor(factor_name)
        return symmetric(factor) if factor is not None and factor_name in HALVES else factor

    def by_example(self, values: torch.Tensor) -> torch.Tensor:
        """Inputs or output gradients ``[batch, tokens, width]``, also of modules that are handed all tokens in one row.

        Raises:
            FactorError: they are not those of the batch's examples, as in an expert that sees chosen tokens only.
        """
        return by_example(values, self.batch_shape, self.name)

    def rotated(self, activations: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """``activations @ right``, once for all modules that see the same input."""
        return activations @ right if self.shared is None else self.shared.rotated(activations, right)

    def get_flattened_activation(self, input_activation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | int]:
        flat: tuple[torch.Tensor, torch.Tensor | int]
        flat = super().get_flattened_activation(self.by_example(input_activation))
        return flat

    def prepare_storage(self, device: torch.device) -> None:
        """Nothing to prepare here: factors are read and prepared one module at a time, when they are needed."""

    def prepared_factors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Eigenvectors and the inverse of the damped lambda, as kronfluence's strategy prepares them, on ``device``."""
        strategy = FactorConfig.CONFIGS[self.factor_args.strategy]
        names: list[str] = []
        if strategy.requires_eigendecomposition_for_precondition:
            names += EIGENDECOMPOSITION_FACTOR_NAMES
        if strategy.requires_lambda_matrices_for_precondition:
            names += LAMBDA_FACTOR_NAMES
        storage: dict[str, Any] = {name: self.source(name, self.name) for name in names} if self.source else {}
        strategy.prepare(storage=storage, score_args=self.score_args, device=device)
        inverse = storage.get(LAMBDA_MATRIX_NAME)
        if inverse is not None and inverse.isinf().all():  # a dead module: no gradient, so no curvature and no damping
            inverse.zero_()
        return {name: factor.to(device) for name, factor in storage.items() if factor is not None}

    def set_mode(self, mode: ModuleMode, release_memory: bool = False) -> None:
        """Begin a pass over data: forget what was found out in the last one."""
        for tracker in self._trackers.values():
            if isinstance(tracker, PairTracker):
                tracker.narrows = None
        super().set_mode(mode, release_memory)
