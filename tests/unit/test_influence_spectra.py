"""Spectra: known matrices in, known numbers out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from influence_helpers import PAD, settings, tiny_examples, tiny_llama
from kronfluence.utils import constants

from whence.errors import ConfigError, FactorError
from whence.influence import layout
from whence.influence.factors import fit_factors, load_factors
from whence.influence.spectra import Spectrum, load_spectra


def test_equal_values_have_full_effective_rank_and_no_condition() -> None:
    spectrum = Spectrum("m.up", np.full((4, 5), 3.0))
    assert spectrum.effective_rank == pytest.approx(20)
    assert spectrum.condition_number == pytest.approx(1)
    assert spectrum.top_share(0.1) == pytest.approx(0.1)
    assert spectrum.short_name == "up"


def test_a_single_value_holds_everything() -> None:
    matrix = np.zeros((10, 10))
    matrix[3, 4] = 5.0
    spectrum = Spectrum("m", matrix)
    assert spectrum.effective_rank == pytest.approx(1)
    assert spectrum.top_share(0.01) == pytest.approx(1)
    assert spectrum.condition_number == pytest.approx((5 + 0.005) / 0.005)
    assert spectrum.sorted_values[0] == 5
    assert spectrum.cumulative_share[-1] == pytest.approx(1)


def test_no_curvature_at_all_gives_finite_numbers() -> None:
    spectrum = Spectrum("m", np.zeros((2, 2)))
    assert spectrum.condition_number == 1
    assert spectrum.effective_rank == pytest.approx(4)


@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal"])
def test_the_layers_spectra_are_the_fitted_lambda_per_example(tmp_path: Path, strategy: str) -> None:
    config = settings(factors__strategy=strategy)
    fit_factors(tiny_llama(), tiny_examples(6, seed=1), config, tmp_path, PAD)
    spectra = load_spectra(tmp_path, settings(inspection__layer=1).inspection)
    assert [spectrum.short_name for spectrum in spectra] == ["gate_proj", "up_proj", "down_proj"]
    factors, module = load_factors(tmp_path), spectra[0].module
    if strategy == "kfac":
        expected = np.outer(
            factors["gradient_eigenvalues"][module].numpy(), factors["activation_eigenvalues"][module].numpy()
        ).clip(0)
    else:
        expected = factors["lambda_matrix"][module].numpy() / 6
    assert spectra[0].lambda_matrix == pytest.approx(expected)


def test_what_was_not_fitted_cannot_be_inspected(tmp_path: Path) -> None:
    config = settings(factors__layers=[0], factors__modules=["up_proj"])
    fit_factors(tiny_llama(), tiny_examples(3, seed=1), config, tmp_path / "f", PAD)
    with pytest.raises(ConfigError, match=r"inspection\.layer: 1 has no factors; layers with factors: \[0\]"):
        load_spectra(tmp_path / "f", settings(inspection__layer=1).inspection)
    with pytest.raises(ConfigError, match="'down_proj' has no factors in layer 0; it has up_proj"):
        load_spectra(tmp_path / "f", settings(inspection__module="down_proj").inspection)
    fit_factors(tiny_llama(), tiny_examples(3, seed=1), settings(factors__strategy="identity"), tmp_path / "i", PAD)
    with pytest.raises(FactorError, match="no spectrum"):
        load_spectra(tmp_path / "i", settings().inspection)


def test_files_have_the_names_that_kronfluence_gives_them() -> None:
    ours = {name: value for name, value in vars(layout).items() if name.isupper() and hasattr(constants, name)}
    assert len(ours) == 6
    assert ours == {name: getattr(constants, name) for name in ours}
