"""The small pages of single stages, in the frame of the Kubeflow UI: as the report looks, and without any script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from whence.influence.spectra import Spectrum
from whence.report.base import render
from whence.report.charts import Figure
from whence.report.model import (
    module_figures,
    numbers_in_words,
    spectra_figures,
    spectra_numbers,
    training_figures,
)
from whence.report.words import covered, number


@dataclass(frozen=True)
class Section:
    """A part of a page: numbers by name, figures, and the numbers of the spectra by module."""

    title: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    spectra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    note: str = ""


def loss_curve_page(history: Sequence[Mapping[str, float]], metrics: Mapping[str, float]) -> str:
    """How training went.

    Args:
        history: what the trainer logged: ``step`` and any of ``loss``, ``eval_loss``, ``learning_rate``.
        metrics: the numbers at its end, by name.
    """
    figures = training_figures(history)
    numbers = {name.replace("_", " ").capitalize(): number(value) for name, value in metrics.items()}
    note = "" if figures else "No loss was logged."
    return render("pages.html", title="Fine-tuning", sections=[Section("", numbers, figures, note=note)])


def spectra_page(
    table: pd.DataFrame,
    spectra: Sequence[Spectrum],
    pictures: Mapping[str, bytes],
    layer: int,
    coverage: dict[str, Any],
) -> str:
    """The curvature of all layers in short and of one in full.

    Args:
        table: as :func:`whence.influence.spectra.spectra_table` returns it.
        spectra: of the modules of ``layer``.
        coverage: how much of the model all of them are (:class:`whence.influence.info.Coverage`).
        pictures: PNG files by name, ``all_layers`` and ``<module>.lambda`` for each of ``spectra``.
    """
    figures, numbers = spectra_figures(table, pictures)[0], spectra_numbers(table)
    short = Section("All layers", figures=figures, spectra=numbers, note=f"Over {covered(coverage)}.")
    full = [
        Section(
            spectrum.module,
            numbers_in_words(**spectrum.numbers),
            module_figures(spectrum, pictures[f"{spectrum.module}.lambda"]),
        )
        for spectrum in spectra
    ]
    return render("pages.html", title=f"Spectra of all layers, and of layer {layer} in full", sections=[short, *full])


def notice_page(title: str, text: str) -> str:
    """A page in place of one that was not made, which says why."""
    return render("pages.html", title=title, sections=[Section("", note=text)])
