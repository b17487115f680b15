"""The figures show the numbers they are given, say what their axes are, and survive data with nothing to show."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from whence import plots
from whence.influence.spectra import Spectrum

SPECTRUM_FIGURES = [plots.lambda_heat_map, plots.sorted_lambda, plots.cumulative_share]


@pytest.fixture
def spectrum() -> Spectrum:
    random = np.random.default_rng(0)
    matrix = np.outer(np.geomspace(1e-4, 1, 16), np.geomspace(1e-5, 1, 40)) * random.gamma(2.0, size=(16, 40))
    return Spectrum("model.layers.1.mlp.up_proj", matrix.astype(np.float32))


def png(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def assert_labelled(axes: Axes) -> None:
    assert axes.get_xlabel()
    assert axes.get_ylabel()


@pytest.mark.parametrize("draw", SPECTRUM_FIGURES)
def test_a_spectrum_figure_names_its_module_and_axes_and_has_a_light_background(draw, spectrum: Spectrum) -> None:
    figure = draw(spectrum)
    assert spectrum.module in figure.get_suptitle()
    assert_labelled(figure.axes[0])
    assert png(figure).convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_the_heat_map_puts_the_largest_eigenvalues_first_on_a_logarithmic_scale(spectrum: Spectrum) -> None:
    [image] = plots.lambda_heat_map(spectrum).axes[0].get_images()
    shown = np.asarray(image.get_array())
    np.testing.assert_array_equal(shown[0, 0], spectrum.lambda_matrix[-1, -1])
    np.testing.assert_array_equal(shown[-1, -1], spectrum.lambda_matrix[0, 0])
    assert isinstance(image.norm, LogNorm)
    assert image.norm.vmax == spectrum.lambda_matrix.max()


def test_the_heat_map_shows_zeros_as_its_darkest_value_without_stretching_the_scale(spectrum: Spectrum) -> None:
    matrix = spectrum.lambda_matrix.copy()
    matrix[0, 0], matrix[0, 1] = 0.0, 1e-30
    [image] = plots.lambda_heat_map(Spectrum("m", matrix)).axes[0].get_images()
    assert np.asarray(image.get_array()).min() == image.norm.vmin
    assert image.norm.vmax / image.norm.vmin <= 1.01e12


def test_sorted_lambda_falls_from_the_largest_to_the_smallest_value(spectrum: Spectrum) -> None:
    axes = plots.sorted_lambda(spectrum).axes[0]
    x, y = axes.get_lines()[0].get_data()
    assert axes.get_yscale() == "symlog"
    assert (x[0], x[-1]) == (1, 640)
    assert (y[0], y[-1]) == (spectrum.lambda_matrix.max(), spectrum.lambda_matrix.min())
    assert np.all(np.diff(y) <= 0)


def test_cumulative_share_marks_how_many_values_hold_half_of_all() -> None:
    figure = plots.cumulative_share(Spectrum("m", np.array([[4.0, 3.0], [2.0, 1.0]])))  # shares .4 .7 .9 1
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "50%: 2 values (50.00%)",
        "90%: 3 values (75.00%)",
        "99%: 4 values (100.00%)",
    ]


def test_large_spectra_are_drawn_with_few_points() -> None:
    figure = plots.sorted_lambda(Spectrum("m", np.random.default_rng(0).random((500, 500), dtype=np.float32)))
    assert len(figure.axes[0].get_lines()[0].get_xdata()) <= plots.MAX_POINTS


@pytest.mark.parametrize("draw", SPECTRUM_FIGURES)
@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.full((2, 2), 3.0), np.array([[1e-38]])])
@pytest.mark.filterwarnings("error")
def test_degenerate_spectra_still_make_a_picture(draw, matrix: np.ndarray) -> None:
    assert png(draw(Spectrum("m", matrix.astype(np.float32)))).size[0] > 300


def spectra(*rows: tuple[str, int | None, np.ndarray]) -> pd.DataFrame:
    """A table of spectra: kind, layer and sorted values of each module, every rank given."""
    frame = pd.DataFrame(
        {
            "kind": [kind for kind, _, _ in rows],
            "layer": pd.array([layer for _, layer, _ in rows], dtype="Int64"),
            "size": [len(values) for _, _, values in rows],
            "ranks": [np.arange(1, len(values) + 1) for _, _, values in rows],
            "values": [values for _, _, values in rows],
        }
    )
    return frame.assign(module=frame["kind"])


def test_all_layers_has_a_panel_per_kind_and_a_row_per_layer_from_largest_to_smallest() -> None:
    falling = np.geomspace(1e2, 1e-2, 1000)
    table = spectra(("up", 0, falling), ("down", 0, falling / 10), ("up", 3, falling / 100), ("lm_head", None, falling))
    figure = plots.all_layers(table)
    up, down, head = figure.axes[:3]
    assert [panel.get_title(loc="left") for panel in (up, down, head)] == ["up", "down", "lm_head"]
    assert [label.get_text() for label in up.get_yticklabels()] == ["0", "3"]
    assert (up.get_ylabel(), head.get_ylabel()) == ("layer", "")
    assert up.yaxis_inverted()
    assert "rank" in head.get_xlabel()
    [colours] = up.collections
    shown = np.asarray(colours.get_array())
    assert isinstance(colours.norm, LogNorm)
    assert (colours.norm.vmin, colours.norm.vmax) == pytest.approx((1e-4, 1e2))
    np.testing.assert_allclose(shown[1], shown[0] / 100)
    assert (np.diff(shown, axis=1) <= 0).all()
    edges = colours.get_coordinates()[0, :, 0]
    middle = np.searchsorted(edges, 0.1)  # the place of rank 100
    assert shown[0, middle] == pytest.approx(falling[99], rel=0.05)
    assert down.collections[0].norm.vmax == colours.norm.vmax


@pytest.mark.parametrize("values", [np.zeros(5), np.full(3, 2.0), np.array([1e-38]), np.array([1.0, 1e-30, 0.0])])
@pytest.mark.filterwarnings("error")
def test_all_layers_survives_degenerate_spectra_and_keeps_its_scale_short(values: np.ndarray) -> None:
    figure = plots.all_layers(spectra(("up", 0, values), ("up", 1, np.zeros(4))))
    assert png(figure).size[0] > 300
    if values[0] > 0:
        scale = figure.axes[0].collections[0].norm
        assert scale.vmax / scale.vmin <= 1.01e12
