"""The model view: how training went, and the spectra of the curvature that influence is seen through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from whence.influence.spectra import Spectrum
from whence.report.charts import MAX_POINTS, Figure, Line, line_chart, picture
from whence.report.words import number, percent

ALL_LAYERS = "all_layers"  # the heat map that stands for those of single modules
MOST_LINES = 6
MOST_BYTES = 1_000_000  # of pictures, so that they never crowd out the answers
DECADES = 12  # of values below the largest that a logarithmic scale shows
SHARES = (0.5, 0.9, 0.99)
LAMBDA = "lambda, mean squared gradient"


def training_figures(history: Sequence[Mapping[str, float]]) -> list[Figure]:
    """Loss and learning rate over the steps, as far as they were logged."""
    losses = [_logged(history, "loss", "training"), _logged(history, "eval_loss", "evaluation", marked=True)]
    rates = [_logged(history, "learning_rate", "learning rate")]
    figures = [
        Figure(line_chart("Loss while fine-tuning, over the optimizer's steps", "optimizer step",
                          "loss, nats per token", losses), "Loss while fine-tuning."),
        Figure(line_chart("Learning rate over the optimizer's steps", "optimizer step", "learning rate", rates),
               "Learning rate."),
    ]  # fmt: skip
    return [figure for figure in figures if figure.content]


def spectra_figures(spectra: pd.DataFrame, pictures: Mapping[str, bytes]) -> tuple[list[Figure], list[str]]:
    """Lambda from largest to smallest and its heat maps; with the names of pictures that found no room.

    There is a line per module, or the middle one of each kind where there are many.
    """
    table = spectra
    if len(table) > MOST_LINES:
        table = pd.concat([rows.iloc[[len(rows) // 2]] for _, rows in table.groupby("kind", sort=False)])
    lines = [
        Line(str(row.module), (100 * np.asarray(row.ranks) / row.size).tolist(), _above_noise(np.asarray(row.values)))
        for row in table.itertuples()
    ]
    chart = line_chart("Lambda from largest to smallest", "percent of the module's values", LAMBDA, lines, log_y=True)
    caption = (
        "Lambda from largest to smallest: how fast the curvature of the loss falls off. A steep fall means that few "
        "directions hold nearly all of it."
    )
    maps, left_out = _heat_maps(pictures)
    return [*([Figure(chart, caption)] if chart else []), *maps], left_out


def module_figures(spectrum: Spectrum, heat_map: bytes) -> list[Figure]:
    """One module's curvature: the heat map, the sorted values and how few of them hold most of the sum."""
    values, shares = spectrum.sorted_values, spectrum.cumulative_share
    picked = np.unique(np.linspace(0, values.size - 1, min(values.size, MAX_POINTS)).astype(int))
    fall = Line(spectrum.module, (picked + 1).tolist(), _above_noise(values[picked]))
    counts = np.unique(np.geomspace(1, shares.size, min(shares.size, MAX_POINTS)).round().astype(int))
    curve = Line("share of the sum", counts.tolist(), (100 * shares[counts - 1]).tolist())
    marks = [
        Line(f"{share:.0%}: {count:,} values ({percent(count / shares.size)})", [count], [100 * shares[count - 1]],
             marked=True, joined=False)
        for share in SHARES
        for count in [int(np.searchsorted(shares, share)) + 1]
    ]  # fmt: skip
    name = spectrum.module
    figures = [
        picture(heat_map, f"Lambda of {name}: how strongly the loss curves along each pair of eigenvectors."),
        Figure(
            line_chart(f"Sorted lambda of {name}", f"rank, 1 to {values.size:,}", LAMBDA, [fall], log_y=True),
            "The same values from largest to smallest, down to twelve decades below the largest.",
        ),
        Figure(
            line_chart(f"Cumulative share of lambda, {name}", f"largest values, of {values.size:,}",
                       "percent of the sum of lambda", [curve, *marks], log_x=True),
            "Share of all curvature that the largest values hold together.",
        ),
    ]  # fmt: skip
    return [figure for figure in figures if figure.content]


def spectra_numbers(spectra: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The spectra's numbers by module."""
    return {
        str(row.module): numbers_in_words(row.effective_rank, row.top_1_percent_share, row.condition_number)
        for row in spectra.itertuples()
    }


def numbers_in_words(effective_rank: float, top_1_percent_share: float, condition_number: float) -> dict[str, str]:
    """The numbers of :class:`whence.influence.spectra.Spectrum` as a page shows them."""
    return {
        "Effective rank": number(effective_rank),
        "Held by the top 1 %": percent(top_1_percent_share),
        "Condition number": number(condition_number),
    }


def _logged(history: Sequence[Mapping[str, float]], key: str, name: str, marked: bool = False) -> Line:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    return Line(name, [x for x, _ in points], [y for _, y in points], marked)


def _above_noise(values: np.ndarray) -> list[float]:
    """Values a logarithmic scale is to show; others are no number."""
    floor = float(values.max(initial=0.0)) * 10.0**-DECADES
    numbers: list[float] = np.where(values >= floor, values.astype(np.float64), np.nan).tolist()
    return numbers


def _heat_maps(pictures: Mapping[str, bytes]) -> tuple[list[Figure], list[str]]:
    single = [name for name in sorted(pictures) if name.endswith(".lambda")]
    maps, left_out, room = [], [], MOST_BYTES
    for name in [ALL_LAYERS] if ALL_LAYERS in pictures else single:
        content = pictures[name]
        if len(content) > room:
            left_out.append(name)
            continue
        room -= len(content)
        caption = "all tracked modules" if name == ALL_LAYERS else name.removesuffix(".lambda")
        maps.append(picture(content, f"Lambda of {caption}: how strongly the loss curves, the largest values first."))
    return maps, left_out
