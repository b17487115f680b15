"""Sums over many batches in low precision: Whence's covariances stay what they are, kronfluence's presets lose them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kronfluence.arguments import FactorArguments
from kronfluence.module.linear import TrackedLinear
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.utils.common.factor_arguments import (
    all_low_precision_factor_arguments,
    smart_low_precision_factor_arguments,
)
from kronfluence.utils.constants import ACTIVATION_COVARIANCE_MATRIX_NAME, GRADIENT_COVARIANCE_MATRIX_NAME
from torch import nn

from whence.influence.linear import FastLinear

BATCHES, TOKENS, INPUTS, OUTPUTS = 2000, 8, 24, 16


def covariance_errors(kind: type[TrackedLinear], arguments: FactorArguments) -> list[float]:
    """Relative errors of both covariances after all batches through a bfloat16 layer, against sums in fp64."""
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    module = kind("layer", layer, factor_args=arguments)
    module.batch_shape = 1, TOKENS  # which a model tells its modules
    module.set_mode(ModuleMode.COVARIANCE, release_memory=True)
    sums = [torch.zeros(width, width, dtype=torch.float64) for width in (INPUTS, OUTPUTS)]
    for _ in range(BATCHES):
        activations = torch.randn(1, TOKENS, INPUTS).to(torch.bfloat16)
        gradients = torch.randn(1, TOKENS, OUTPUTS).to(torch.bfloat16)
        module(activations).backward(gradients)
        for total, rows in zip(sums, (activations[0].double(), gradients[0].double()), strict=True):
            total.addmm_(rows.T, rows)
    names = (ACTIVATION_COVARIANCE_MATRIX_NAME, GRADIENT_COVARIANCE_MATRIX_NAME)
    found = [module.get_factor(name).double() for name in names]
    return [float((value - total).norm() / total.norm()) for value, total in zip(found, sums, strict=True)]


@pytest.mark.parametrize("arguments", [FactorArguments, all_low_precision_factor_arguments])
def test_covariances_of_bfloat16_activations_are_summed_in_fp32(arguments: Callable[[], FactorArguments]) -> None:
    """Also where the products are of bfloat16 numbers, as kronfluence's presets ask."""
    assert max(covariance_errors(FastLinear, arguments())) < 1e-3


@pytest.mark.parametrize("preset", [all_low_precision_factor_arguments, smart_low_precision_factor_arguments])
def test_kronfluences_low_precision_presets_lose_covariances_to_rounding(preset: Callable[[], FactorArguments]) -> None:
    """Why Whence does not use them; should this fail, kronfluence has changed and the choice is open again."""
    assert min(covariance_errors(TrackedLinear, preset())) > 0.2
