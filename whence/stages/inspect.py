"""Stage ``inspect``: the eigenvalue spectra of a chosen layer's factors, as plots and numbers. Needs no torch model."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from whence import plots
from whence.config_file import load_config
from whence.influence.spectra import Spectrum, load_spectra
from whence.report.page import Section, page
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun

PLOTS = {
    "lambda": (plots.lambda_heat_map, "Lambda: how strongly the loss curves along each pair of eigenvectors."),
    "sorted_lambda": (plots.sorted_lambda, "The same values from largest to smallest."),
    "cumulative_share": (plots.cumulative_share, "Share of all curvature that the largest values hold together."),
}


def run(*, config: Path, factors: Path, spectra: Path, spectra_page: Path) -> StageResult:
    """Plot the spectra of the layer ``inspection.layer``.

    Args:
        config: the resolved configuration.
        factors: the influence factors.
        spectra: receives one PNG per plot and module.
        spectra_page: receives all plots and numbers as a self-contained HTML page.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        folder = work.outputs["spectra"]
        folder.mkdir(parents=True, exist_ok=True)
        metrics: dict[str, float] = {}
        sections = []
        for spectrum in load_spectra(factors, settings.inspection):
            figures: list[tuple[str, Figure]] = []
            for name, (draw, caption) in PLOTS.items():
                figure = draw(spectrum)
                figure.savefig(folder / f"{spectrum.module}.{name}.png", dpi=120)
                figures.append((caption, figure))
            numbers = _numbers(spectrum)
            metrics |= {f"{spectrum.short_name}_{key}": value for key, value in numbers.items()}
            sections.append(Section(spectrum.module, figures=figures, numbers=numbers))
        title = f"Spectra of layer {settings.inspection.layer}"
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


def _numbers(spectrum: Spectrum) -> dict[str, float]:
    return {
        "effective_rank": spectrum.effective_rank,
        "top_1_percent_share": spectrum.top_share(0.01),
        "condition_number": spectrum.condition_number,
    }
