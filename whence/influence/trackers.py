"""What tracked modules record: kronfluence's trackers with the same results at a fraction of the cost.

They are installed through kronfluence's own registry of tracked modules (see :mod:`whence.influence.tracked`).
"""

from __future__ import annotations

from typing import Any

import torch
from kronfluence.module.tracker.base import BaseTracker
from kronfluence.module.tracker.factor import CovarianceTracker, LambdaTracker
from kronfluence.utils.constants import (
    ACTIVATION_COVARIANCE_MATRIX_NAME,
    ACTIVATION_EIGENVECTORS_NAME,
    GRADIENT_COVARIANCE_MATRIX_NAME,
    GRADIENT_EIGENVECTORS_NAME,
    LAMBDA_MATRIX_NAME,
    NUM_ACTIVATION_COVARIANCE_PROCESSED,
    NUM_GRADIENT_COVARIANCE_PROCESSED,
    NUM_LAMBDA_PROCESSED,
)
from torch import nn

from whence.errors import FactorError
from whence.influence.products import Basis, add_outer, add_squares, gradient_chunks, live_tokens, wide, with_bias


class SummedCovarianceTracker(CovarianceTracker):
    """Sums covariances in fp32 whatever the model computes in, and only their upper half, as they are symmetric."""

    def register_hooks(self) -> None:
        super().register_hooks()
        if self.module.shared is not None:
            self.registered_hooks.append(self.module.register_forward_pre_hook(self._meet))

    def _meet(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.module.shared.meet(self.module.name, inputs[0])

    def _update_activation_covariance_matrix(self, input_activation: torch.Tensor, count: Any) -> None:
        if not self.module.sums_inputs:
            return
        self._add(ACTIVATION_COVARIANCE_MATRIX_NAME, NUM_ACTIVATION_COVARIANCE_PROCESSED, input_activation, count, 1.0)

    def _update_gradient_covariance_matrix(self, output_gradient: torch.Tensor, count: Any) -> None:
        scale = self.module.gradient_scale**2
        self._add(GRADIENT_COVARIANCE_MATRIX_NAME, NUM_GRADIENT_COVARIANCE_PROCESSED, output_gradient, count, scale)

    def _add(self, matrix: str, number: str, rows: torch.Tensor, count: Any, scale: float) -> None:
        storage = self.module.storage
        if storage[matrix] is None:
            width = rows.shape[1]
            storage[matrix] = torch.zeros(width, width, dtype=wide(rows.dtype), device=rows.device)
            storage[number] = torch.zeros(1, dtype=torch.int64, device=getattr(count, "device", None))
        storage[number].add_(count)
        add_outer(storage[matrix], rows, scale)


class PairTracker(BaseTracker):
    """Brings a module's activations and output gradients together in the backward pass.

    Unlike kronfluence's trackers it keeps a reference to the activations and not a copy, and hands on only the tokens
    that the loss reaches: in the last layer these are the few whose own loss counts.
    """

    narrows: bool | None = None  # whether the loss reaches only a few tokens; None: not known yet in this pass

    def record(self, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take in a batch: ``[batch, tokens, inputs]`` (with the bias's ones) and ``[batch, tokens, outputs]``."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The precision to compute in."""
        dtype: torch.dtype = self.module.score_args.per_sample_gradient_dtype
        return dtype

    def register_hooks(self) -> None:
        self.registered_hooks.append(self.module.register_forward_hook(self._after_forward))

    def _after_forward(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        activations = inputs[0].detach()
        version = activations._version

        @torch.no_grad()
        def after_backward(gradients: torch.Tensor) -> None:
            if activations._version != version:
                raise FactorError(
                    f"the model changes the input of {self.module.name} in place, so its gradient cannot be had",
                    hint="leave it out of factors.modules",
                )
            self.record(*self._pair(activations, gradients.detach()))
            if self.module.shared is not None:
                self.module.shared.done()

        outputs.register_hook(after_backward)

    def _pair(self, activations: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        activations, gradients = self.module.by_example(activations), self.module.by_example(gradients)
        activations, gradients = self._narrow(activations, gradients)
        if self.module.gradient_scale != 1.0:
            gradients = gradients * self.module.gradient_scale
        gradients, shared = gradients.to(self.dtype), self.module.shared
        activations = shared.prepared(activations, self._prepared) if shared else self._prepared(activations)
        process = self.module.per_sample_gradient_process_fnc
        if process is None:
            return activations, gradients
        ((_, whole),) = gradient_chunks(activations, gradients, Basis(None, None), chunk=len(gradients))
        whole = process(module_name=self.module.name, gradient=whole)
        # As if the outputs were the tokens: what was made of the product is a product again, whoever takes it in.
        return whole, torch.eye(whole.shape[1], dtype=whole.dtype, device=whole.device).expand(len(whole), -1, -1)

    def _prepared(self, activations: torch.Tensor) -> torch.Tensor:
        activations = activations.to(self.dtype)
        return activations if self.module.bias is None else with_bias(activations)

    def _narrow(self, activations: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.narrows is not False:
            span = live_tokens(gradients)
            if self.narrows is None:  # looking costs a pass over the gradients: the first batch tells if it pays
                self.narrows = 2 * (span.stop - span.start) < gradients.shape[1]
            activations, gradients = activations[:, span], gradients[:, span]
        return activations, gradients


class RotatedLambdaTracker(PairTracker, LambdaTracker):
    """Sums squared per-example gradients in the eigenbasis, rotating token by token where that is cheaper."""

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.module.factor_args.per_sample_gradient_dtype
        return dtype

    def record(self, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        storage = self.module.storage
        if storage[LAMBDA_MATRIX_NAME] is None:
            shape = gradients.shape[-1], activations.shape[-1]
            storage[LAMBDA_MATRIX_NAME] = torch.zeros(shape, dtype=wide(self.dtype), device=gradients.device)
            storage[NUM_LAMBDA_PROCESSED] = torch.zeros(1, dtype=torch.int64)
            for name in (ACTIVATION_EIGENVECTORS_NAME, GRADIENT_EIGENVECTORS_NAME):
                if storage[name] is not None:
                    storage[name] = storage[name].to(device=gradients.device, dtype=self.dtype)
        storage[NUM_LAMBDA_PROCESSED].add_(len(gradients))
        add_squares(storage[LAMBDA_MATRIX_NAME], activations, gradients, basis_of(storage), self.module.rotated)


class CollectTracker(PairTracker):
    """Hands a batch of examples on to what collects from the pass (:mod:`whence.influence.collectors`)."""

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.module.score_args.score_dtype
        return dtype

    def _narrow(self, activations: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if any(collector.every_token for collector in self.module.collectors):
            return activations, gradients
        return super()._narrow(activations, gradients)

    def record(self, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        for collector in self.module.collectors:
            collector.take(self.module, activations, gradients)


def basis_of(storage: dict[str, Any]) -> Basis:
    """The eigenbasis held in a module's factors; strategies without one have the weights' own."""
    return Basis(storage.get(GRADIENT_EIGENVECTORS_NAME), storage.get(ACTIVATION_EIGENVECTORS_NAME))
