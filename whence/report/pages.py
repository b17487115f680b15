"""The small pages that stages show in the Kubeflow UI: the loss curve and the spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from whence import plots
from whence.influence.spectra import Spectrum
from whence.report.page import Section, page


def loss_curve_page(history: Sequence[Mapping[str, float]], metrics: Mapping[str, float]) -> str:
    """Training and evaluation loss over the steps."""
    return page(
        "Fine-tuning",
        [Section("Loss", figures=[("Training and evaluation loss", plots.loss_curve(history))], numbers=metrics)],
    )


def spectra_page(table: pd.DataFrame, spectra: Sequence[Spectrum], layer: int) -> str:
    """The spectra of all layers in short, and those of one layer in full."""
    sections = [Section("All layers", figures=[("Lambda of every tracked module", plots.all_layers(table))])]
    for spectrum in spectra:
        figures = [(name, draw(spectrum)) for name, draw in plots.SPECTRUM_PLOTS.items()]
        sections.append(Section(spectrum.module, figures=figures, numbers=spectrum.numbers))
    return page(f"Spectra of all layers, and of layer {layer} in full", sections)
