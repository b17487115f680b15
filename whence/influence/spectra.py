"""The eigenvalue spectra of fitted factors: what ``inspect`` shows. Arrays and numbers; no model, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from whence.config import Inspection
from whence.errors import ConfigError, FactorError
from whence.influence.info import FactorsInfo, load_factors_info
from whence.influence.layout import (
    ACTIVATION_EIGENVALUES_NAME,
    GRADIENT_EIGENVALUES_NAME,
    HEURISTIC_DAMPING_SCALE,
    LAMBDA_MATRIX_NAME,
    NUM_LAMBDA_PROCESSED,
    factor_file,
    factors_folder,
    layer_of,
    opened,
    short_names,
)

RANKS = 64  # of a module's sorted values that its row of the table holds


@dataclass(frozen=True)
class Spectrum:
    """One module's curvature along each pair of eigenvectors.

    Attributes:
        module: full name of the module.
        lambda_matrix: ``[outputs, inputs]`` mean squared per-example gradient in the eigenbasis, not negative; rows
            and columns in the order of ascending eigenvalues of the two covariances.
    """

    module: str
    lambda_matrix: np.ndarray

    @property
    def short_name(self) -> str:
        return self.module.rsplit(".", 1)[-1]

    @cached_property
    def sorted_values(self) -> np.ndarray:
        """All entries from largest to smallest, ``[outputs * inputs]``."""
        return np.sort(self.lambda_matrix, axis=None)[::-1]

    @cached_property
    def cumulative_share(self) -> np.ndarray:
        """Share of the total held by the largest 1, 2, ... values, ``[outputs * inputs]``, ending at 1."""
        running = np.cumsum(self.sorted_values, dtype=np.float64)
        return running / running[-1] if running[-1] > 0 else np.linspace(1 / len(running), 1, len(running))

    def top_share(self, fraction: float) -> float:
        """Share of the total held by the largest ``fraction`` of the values (at least one)."""
        count = max(1, round(fraction * len(self.sorted_values)))
        return float(self.cumulative_share[count - 1])

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the values as shares: n for n equal values (Roy & Vetterli 2007)."""
        shares = np.diff(self.cumulative_share, prepend=0.0)
        shares = shares[shares > 0]
        return float(np.exp(-np.sum(shares * np.log(shares))))

    @property
    def condition_number(self) -> float:
        """Largest over smallest value, both damped by 0.1 x the mean as in scoring; undamped it may be infinite."""
        damping = HEURISTIC_DAMPING_SCALE * float(self.sorted_values.mean(dtype=np.float64))
        largest, smallest = float(self.sorted_values[0]), float(self.sorted_values[-1])
        return (largest + damping) / (smallest + damping) if damping > 0 else 1.0

    @property
    def numbers(self) -> dict[str, float]:
        """The spectrum in three numbers."""
        return {
            "effective_rank": self.effective_rank,
            "top_1_percent_share": self.top_share(0.01),
            "condition_number": self.condition_number,
        }


def load_spectra(factors: Path, inspection: Inspection) -> list[Spectrum]:
    """The spectra of the modules of ``inspection.layer`` (or of its ``inspection.module`` alone).

    Raises:
        ConfigError: the layer or module has no factors.
        FactorError: the factors are unfinished or damaged, or their strategy has no spectrum.
    """
    info = load_factors_info(factors)
    layers = sorted({layer for name in info.modules if (layer := layer_of(name)) is not None})
    inside = [name for name in info.modules if layer_of(name) == inspection.layer]
    if not inside:
        raise ConfigError(f"inspection.layer: {inspection.layer} has no factors", hint=f"layers with factors: {layers}")
    chosen = [name for name in inside if inspection.module in (None, name, name.rsplit(".", 1)[-1])]
    if not chosen:
        names = ", ".join(name.rsplit(".", 1)[-1] for name in inside)
        raise ConfigError(
            f"inspection.module: {inspection.module!r} has no factors in layer {inspection.layer}",
            hint=f"it has {names}",
        )
    return list(_spectra(factors, info, chosen))


def spectra_table(factors: Path) -> pd.DataFrame:
    """The spectra of all modules in short, one row each, read one after another.

    Returns:
        Columns ``module`` (full name), ``layer`` (missing outside any), ``kind`` (short name), ``size`` (values),
        ``ranks`` (up to :data:`RANKS` from 1 to ``size``, evenly spaced by logarithm), ``values`` (the sorted lambda at
        those ranks), and the numbers of :class:`Spectrum`: ``effective_rank, top_1_percent_share, condition_number``.

    Raises:
        FactorError: the factors are unfinished or damaged, or their strategy has no spectrum.
    """
    info = load_factors_info(factors)
    kinds = short_names(info.modules)
    rows = []
    for spectrum in _spectra(factors, info, info.modules):
        size = spectrum.sorted_values.size
        ranks = np.unique(np.geomspace(1, size, min(size, RANKS)).round().astype(np.int64))
        values = spectrum.sorted_values[ranks - 1].astype(np.float64)
        row = {"module": spectrum.module, "layer": layer_of(spectrum.module), "kind": kinds[spectrum.module]}
        rows.append(row | {"size": size, "ranks": ranks, "values": values} | spectrum.numbers)
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _spectra(factors: Path, info: FactorsInfo, modules: Sequence[str]) -> Iterator[Spectrum]:
    folder = factors_folder(factors, info.strategy)
    return (Spectrum(name, _lambda_matrix(folder, info.strategy, name)) for name in modules)


def _lambda_matrix(folder: Path, strategy: str, module: str) -> np.ndarray:
    if strategy in ("ekfac", "diagonal"):
        mean = _load(folder, LAMBDA_MATRIX_NAME, module) / _load(folder, NUM_LAMBDA_PROCESSED, module)
        return np.asarray(mean)
    if strategy == "kfac":
        activations = _load(folder, ACTIVATION_EIGENVALUES_NAME, module)
        gradients = _load(folder, GRADIENT_EIGENVALUES_NAME, module)
        return np.outer(gradients, activations).clip(min=0)
    raise FactorError(
        f"factors of strategy {strategy} have no spectrum to inspect", hint="fit with ekfac, kfac or diagonal"
    )


def _load(folder: Path, factor: str, module: str) -> np.ndarray:
    """One module's array of one factor; a count is given as float32, like the factors."""
    with opened(factor_file(folder, factor), "numpy") as file:
        return np.asarray(file.get_tensor(module), dtype=np.float32)
