"""Stage ``inspect``: the factors' eigenvalue spectra, of all layers in short and of a chosen one in full.

Needs no torch model.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from whence import plots
from whence.config_file import load_config
from whence.influence.spectra import load_spectra, spectra_table
from whence.report.page import Section, page
from whence.stages.artifacts import SPECTRA
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun

ALL_LAYERS = "Lambda of every tracked module from largest to smallest: where in the model the curvature is."
PLOTS = {
    "lambda": (plots.lambda_heat_map, "Lambda: how strongly the loss curves along each pair of eigenvectors."),
    "sorted_lambda": (plots.sorted_lambda, "The same values from largest to smallest."),
    "cumulative_share": (plots.cumulative_share, "Share of all curvature that the largest values hold together."),
}


def run(*, config: Path, factors: Path, spectra: Path, spectra_page: Path) -> StageResult:
    """Plot the spectra of all layers together, and those of the layer ``inspection.layer`` one by one.

    Args:
        config: the resolved configuration.
        factors: the influence factors.
        spectra: receives ``spectra.parquet`` (a row per module of all layers), ``all_layers.png``, and one PNG per plot
            and module of the chosen layer.
        spectra_page: receives all plots and numbers as a self-contained HTML page.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        folder = work.outputs["spectra"]
        folder.mkdir(parents=True, exist_ok=True)
        table = spectra_table(factors)
        table.to_parquet(folder / SPECTRA, index=False)
        overview = plots.all_layers(table)
        overview.savefig(folder / "all_layers.png", dpi=120)
        sections = [Section("All layers", figures=[(ALL_LAYERS, overview)])]
        metrics: dict[str, float] = {}
        for spectrum in load_spectra(factors, settings.inspection):
            figures: list[tuple[str, Figure]] = []
            for name, (draw, caption) in PLOTS.items():
                figure = draw(spectrum)
                figure.savefig(folder / f"{spectrum.module}.{name}.png", dpi=120)
                figures.append((caption, figure))
            metrics |= {f"{spectrum.short_name}_{key}": value for key, value in spectrum.numbers.items()}
            sections.append(Section(spectrum.module, figures=figures, numbers=spectrum.numbers))
        title = f"Spectra of all layers, and of layer {settings.inspection.layer} in full"
        work.outputs["spectra_page"].write_text(page(title, sections), encoding="utf-8")
        return metrics

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifacts(work.outputs["spectra"], "plots")
        run.log_artifact(work.outputs["spectra_page"], "plots", name="spectra.html")

    return run_stage(
        "inspect",
        settings,
        inputs={"factors": factors},
        outputs={"spectra": spectra, "spectra_page": spectra_page},
        settings=["inspection"],
        compute=compute,
        record=record,
    )
