"""Spectra: known matrices in, known numbers out."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from influence_helpers import MODULES, settings, tiny_examples, tiny_llama, trained
from kronfluence.utils import constants

from whence.errors import ConfigError, FactorError
from whence.influence import layout, spectra
from whence.influence.factors import fit_factors, load_factors
from whence.influence.spectra import RANKS, Spectrum, load_spectra, spectra_table


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
    fit_factors(trained(tiny_llama(), tiny_examples(6, seed=1), config), tmp_path)
    found = load_spectra(tmp_path, settings(inspection__layer=1).inspection)
    assert [spectrum.short_name for spectrum in found] == ["gate_proj", "up_proj", "down_proj"]
    factors, module = load_factors(tmp_path), found[0].module
    if strategy == "kfac":
        expected = np.outer(
            factors["gradient_eigenvalues"][module].numpy(), factors["activation_eigenvalues"][module].numpy()
        ).clip(0)
    else:
        expected = factors["lambda_matrix"][module].numpy() / 6
    assert found[0].lambda_matrix == pytest.approx(expected)


def test_what_was_not_fitted_cannot_be_inspected(tmp_path: Path) -> None:
    config = settings(factors__layers=[0], factors__modules=["up_proj"])
    fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), config), tmp_path / "f")
    with pytest.raises(ConfigError, match=r"inspection\.layer: 1 has no factors; layers with factors: \[0\]"):
        load_spectra(tmp_path / "f", settings(inspection__layer=1).inspection)
    with pytest.raises(ConfigError, match="'down_proj' has no factors in layer 0; it has up_proj"):
        load_spectra(tmp_path / "f", settings(inspection__module="down_proj").inspection)
    fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), settings(factors__strategy="identity")), tmp_path / "i")
    with pytest.raises(FactorError, match="no spectrum"):
        load_spectra(tmp_path / "i", settings().inspection)


def test_files_have_the_names_that_kronfluence_gives_them() -> None:
    ours = {name: value for name, value in vars(layout).items() if name.isupper() and hasattr(constants, name)}
    assert len(ours) == 6
    assert ours == {name: getattr(constants, name) for name in ours}


def test_the_table_holds_every_modules_sorted_lambda_at_ranks_evenly_spaced_by_logarithm(tmp_path: Path) -> None:
    fit_factors(trained(tiny_llama(), tiny_examples(6, seed=1), settings()), tmp_path)
    table = spectra_table(tmp_path)
    factors = load_factors(tmp_path)["lambda_matrix"]
    assert table["module"].tolist() == MODULES
    assert table["layer"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["kind"].tolist() == ["gate_proj", "up_proj", "down_proj"] * 2
    for row in table.itertuples():
        values = np.sort(factors[row.module].double().numpy().ravel() / 6)[::-1]
        assert row.size == values.size == 240
        assert (row.ranks[0], row.ranks[-1]) == (1, 240)
        steps = np.diff(np.log(row.ranks))
        assert (steps > 0).all()
        assert steps.max() <= np.log(2) + 1e-9  # from the first value to the second
        assert len(row.ranks) == len(row.values) <= RANKS
        assert row.values == pytest.approx(values[row.ranks - 1], rel=1e-5)
        shares = values / values.sum()
        assert row.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        assert row.top_1_percent_share == pytest.approx(shares[:2].sum(), rel=1e-5)
        damped = values + 0.1 * values.mean()
        assert row.condition_number == pytest.approx(damped[0] / damped[-1], rel=1e-4)


def test_the_table_reads_one_module_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), settings()), tmp_path)
    held: list[weakref.ref[np.ndarray]] = []
    load = spectra._lambda_matrix

    def watched(*arguments: Any) -> np.ndarray:
        assert sum(matrix() is not None for matrix in held) <= 1  # the one before, until this one takes its place
        matrix = load(*arguments)
        held.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(spectra, "_lambda_matrix", watched)
    spectra_table(tmp_path)
    assert len(held) == 6


def test_the_table_survives_being_written(tmp_path: Path) -> None:
    config = settings(factors__modules=["down_proj", "lm_head"])
    fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), config), tmp_path)
    table = spectra_table(tmp_path)
    table.to_parquet(tmp_path / "spectra.parquet", index=False)
    read = pd.read_parquet(tmp_path / "spectra.parquet")
    assert read["module"].tolist()[-1] == "lm_head"
    assert pd.isna(read["layer"].iloc[-1])
    assert read["layer"].tolist()[:2] == [0, 1]
    assert read["ranks"][0].dtype == np.int64
    assert read["values"][0].dtype == np.float64


def test_factors_without_a_spectrum_make_no_table(tmp_path: Path) -> None:
    fit_factors(trained(tiny_llama(), tiny_examples(3, seed=1), settings(factors__strategy="identity")), tmp_path)
    with pytest.raises(FactorError, match="no spectrum"):
        spectra_table(tmp_path)
