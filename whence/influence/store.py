"""Factor files: kronfluence's own names and layout, written so that a file is either whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from kronfluence.utils.constants import (
    COVARIANCE_FACTOR_NAMES,
    EIGENDECOMPOSITION_FACTOR_NAMES,
    LAMBDA_FACTOR_NAMES,
)
from safetensors.torch import save_file

from whence.files import replacing
from whence.influence.layout import factor_file, opened

Tensors = dict[str, torch.Tensor]
Factors = dict[str, Tensors]  # factor name -> module name -> tensor, as everywhere in kronfluence

COVARIANCES = tuple(COVARIANCE_FACTOR_NAMES)
EIGEN = tuple(EIGENDECOMPOSITION_FACTOR_NAMES)
LAMBDAS = tuple(LAMBDA_FACTOR_NAMES)


def save_factors(folder: Path, factors: Mapping[str, Tensors]) -> None:
    """Write one file per factor, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for factor, tensors in factors.items():
        with replacing(factor_file(folder, factor)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def load_factors(folder: Path, names: tuple[str, ...]) -> Factors:
    """Read factor files whole.

    Raises:
        FactorError: a file is missing or damaged.
    """
    return {factor: _read(factor_file(folder, factor)) for factor in names}


def load_one(folder: Path, factor: str, module: str) -> torch.Tensor:
    """One module's tensor of one factor, without reading the others.

    Raises:
        FactorError: the file is missing or damaged, or does not know the module.
    """
    with opened(factor_file(folder, factor), "pt") as file:
        tensor: torch.Tensor = file.get_tensor(module)
        return tensor


def delete_factors(folder: Path, names: tuple[str, ...]) -> None:
    for factor in names:
        factor_file(folder, factor).unlink(missing_ok=True)


def _read(path: Path) -> Tensors:
    with opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
