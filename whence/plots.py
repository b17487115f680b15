"""Matplotlib figures of the factors' spectra. Each function returns a Figure of its own: no pyplot, no global state.

Colours are Okabe and Ito's and the cividis map, which stay apart for colour-blind readers; the background is light, so
that a figure reads the same on a dark page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from whence.influence.spectra import Spectrum

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#6B6B6B"
SHARES = (0.5, 0.9, 0.99)
DECADES = 12  # of values below the largest that a logarithmic scale shows
MAX_POINTS = 4000  # a line of more is no different at any size a screen has
COLUMNS = 256  # of the heat map of all layers

_thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")


def lambda_heat_map(spectrum: Spectrum) -> Figure:
    """Lambda over the pairs of eigenvectors, largest eigenvalues in the upper left corner, on a logarithmic scale.

    Values of zero, and those more than twelve decades below the largest, take the darkest colour.
    """
    matrix = spectrum.lambda_matrix[::-1, ::-1]  # kronfluence keeps eigenvalues rising
    figure, axes = _figure(f"Lambda matrix of {spectrum.module}", size=(7.6, 6.0))
    top = float(matrix.max(initial=0.0))
    if not top > 0:
        return _nothing(figure, axes, "every value of lambda is zero")
    floor = max(float(matrix[matrix > 0].min()), top * 10.0**-DECADES)
    scale = LogNorm(floor if floor < top else top / 10, top)
    outputs, inputs = matrix.shape
    edges = (0.5, inputs + 0.5, outputs + 0.5, 0.5)
    image = axes.imshow(np.maximum(matrix, floor), cmap="cividis", norm=scale, aspect="auto", extent=edges)
    axes.set_xlabel(f"eigenvector of the activations, by falling eigenvalue (1 to {inputs:,})")
    axes.set_ylabel(f"eigenvector of the output gradients (1 to {outputs:,})")
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_major_formatter(_thousands)
    figure.colorbar(image, ax=axes, label="lambda: mean squared gradient")
    return figure


def sorted_lambda(spectrum: Spectrum) -> Figure:
    """All values of lambda from largest to smallest; symmetric logarithmic, so that zeros and noise below show."""
    values = spectrum.sorted_values
    figure, axes = _figure(f"Sorted lambda of {spectrum.module}")
    if not values[0] > 0:
        return _nothing(figure, axes, "every value of lambda is zero")
    places = np.unique(np.linspace(0, values.size - 1, min(values.size, MAX_POINTS)).astype(int))
    axes.plot(places + 1, values[places], color=BLUE, linewidth=1.8)
    floor = max(float(values[values > 0][-1]), float(values[0]) * 10.0**-DECADES)
    axes.set_yscale("symlog", linthresh=floor)
    axes.set_ylim(0, float(values[0]) * 2)
    decades = np.arange(np.ceil(np.log10(floor)), np.floor(np.log10(values[0])) + 1)
    if len(decades) > 1:
        axes.set_yticks([0.0, *10.0 ** decades[:: max(1, len(decades) // 7)]])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"rank (1 to {values.size:,})")
    axes.set_ylabel("lambda: mean squared gradient (symlog)")
    axes.xaxis.set_major_formatter(_thousands)
    return figure


def cumulative_share(spectrum: Spectrum) -> Figure:
    """Share of the sum of lambda that the largest values hold, with the counts for 50, 90 and 99 percent."""
    shares = spectrum.cumulative_share
    figure, axes = _figure(f"Cumulative share of lambda, {spectrum.module}")
    if not spectrum.sorted_values[0] > 0:
        return _nothing(figure, axes, "every value of lambda is zero")
    places = np.unique(np.geomspace(1, shares.size, min(shares.size, MAX_POINTS)).astype(int))
    axes.plot(places, shares[places - 1], color=BLUE, linewidth=1.8)
    for share in SHARES:
        count = int(np.searchsorted(shares, share)) + 1
        axes.plot(count, shares[count - 1], "o", color=VERMILION)
        left = count > shares.size**0.5  # the half of the axis with room beside the marker
        axes.annotate(
            f"{share:.0%}: {count:,} values ({count / shares.size:.2%})",
            (count, shares[count - 1]),
            xytext=(-8, 3) if left else (8, -3),  # the curve rises: above it to the left, below it to the right
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom" if left else "top",
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_xlabel(f"number of largest values, of {shares.size:,}")
    axes.set_ylabel("share of the sum of lambda")
    return figure


def all_layers(spectra: pd.DataFrame) -> Figure:
    """Sorted lambda of every module as a row of colours: a panel per kind of module, a row per layer.

    Ranks are shares of the module's values, so that modules of different size can be compared. Zeros, and values more
    than twelve decades below the largest, take the darkest colour.

    Args:
        spectra: as :func:`whence.influence.spectra.spectra_table` returns them.
    """
    kinds = list(spectra["kind"].unique())
    heights = [0.3 + 0.1 * int((spectra["kind"] == kind).sum()) for kind in kinds]
    figure = _canvas("Sorted lambda of all tracked modules", (7.6, 1.4 + sum(height + 0.4 for height in heights)))
    panels = figure.subplots(len(kinds), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    top = max(float(values[0]) for values in spectra["values"])
    if not top > 0:
        return _nothing(figure, panels[0], "every value of lambda is zero")
    least = min(float(values[values > 0][-1]) for values in spectra["values"] if values[0] > 0)
    floor = max(least, top * 10.0**-DECADES)
    scale = LogNorm(floor if floor < top else top / 10, top)
    edges = np.geomspace(1 / max(2, int(spectra["size"].max())), 1, COLUMNS + 1)
    for panel, kind in zip(panels, kinds, strict=True):
        rows = spectra[spectra["kind"] == kind]
        layers = ["" if pd.isna(layer) else f"{layer}" for layer in rows["layer"]]
        colours = [_at_shares(row, np.sqrt(edges[1:] * edges[:-1]), floor) for _, row in rows.iterrows()]
        image = panel.pcolormesh(edges, np.arange(len(rows) + 1), np.array(colours), cmap="cividis", norm=scale)
        places = range(0, len(rows), -(-len(rows) // 12))
        panel.set_yticks([row + 0.5 for row in places], [layers[row] for row in places], fontsize=8)
        panel.invert_yaxis()
        panel.set_title(kind, loc="left", fontsize=9)
        panel.set_ylabel("layer" if any(layers) else None)
        panel.grid(visible=False)
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_formatter(FuncFormatter(_percent))
    panels[-1].set_xlabel("rank, as a share of the module's values (largest on the left)")
    figure.colorbar(image, ax=list(panels), label="lambda: mean squared gradient", aspect=5 * figure.get_figheight())
    return figure


def _percent(share: float, _: int) -> str:
    return np.format_float_positional(100 * share, precision=3, fractional=False, trim="-") + "%"


def _at_shares(row: pd.Series, shares: np.ndarray, floor: float) -> np.ndarray:
    """A module's sorted lambda at ``shares`` of its values, between those of its row by logarithm."""
    logs = np.log(np.maximum(row["values"], floor))
    return np.asarray(np.exp(np.interp(np.log(shares), np.log(row["ranks"] / row["size"]), logs)))


def _figure(title: str, size: tuple[float, float] = (7.6, 4.4)) -> tuple[Figure, Axes]:
    figure = _canvas(title, size)
    axes = figure.subplots()
    _dress(axes)
    return figure, axes


def _canvas(title: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1), facecolor="white")
    figure.suptitle(title, fontsize=13, x=0.02, ha="left")
    return figure


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def _nothing(figure: Figure, axes: Axes, reason: str) -> Figure:
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY)
    return figure


SPECTRUM_PLOTS = {"lambda": lambda_heat_map, "sorted_lambda": sorted_lambda, "cumulative_share": cumulative_share}
"""The plots of one module's spectrum, by the names of their files."""
