"""Stage ``inspect``: the factors' eigenvalue spectra, of all layers in short and of a chosen one in full. No torch."""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import Stage, Work


def compute(work: Work) -> dict[str, float]:
    from whence import plots
    from whence.influence.info import load_factors_info
    from whence.influence.spectra import load_spectra, spectra_table
    from whence.report.pages import notice_page, spectra_page
    from whence.running.lineage import write_absent

    folder, page = work.outputs["spectra"], work.outputs["spectra_page"]
    if work.config.factors.strategy == "identity":
        why = "factors.strategy is identity, which fits no curvature"
        write_absent(folder, why)
        page.write_text(notice_page("No spectra", why), encoding="utf-8")
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    table = spectra_table(work.inputs["factors"])
    table.to_parquet(folder / artifacts.SPECTRA_FILE, index=False)
    plots.all_layers(table).savefig(folder / "all_layers.png", dpi=120)
    spectra = load_spectra(work.inputs["factors"], work.config.inspection)
    for spectrum in spectra:
        for name, draw in plots.SPECTRUM_PLOTS.items():
            draw(spectrum).savefig(folder / f"{spectrum.module}.{name}.png", dpi=120)
    pictures = {file.stem: file.read_bytes() for file in folder.glob("*.png")}
    coverage = load_factors_info(work.inputs["factors"]).coverage.model_dump()
    html = spectra_page(table, spectra, pictures, work.config.inspection.layer, coverage)
    page.write_text(html, encoding="utf-8")
    return {f"{spectrum.short_name}_{key}": value for spectrum in spectra for key, value in spectrum.numbers.items()}


def record(work: Work) -> None:
    work.run.log_artifacts(work.outputs["spectra"], "plots")
    work.run.log_artifact(work.outputs["spectra_page"], "plots", name="spectra.html")


STAGE = Stage(
    name="inspect",
    help="Plot the factors' spectra, of all layers together and of one in full.",
    inputs=(artifacts.FACTORS,),
    outputs=(artifacts.SPECTRA, artifacts.SPECTRA_PAGE),
    settings=("inspection",),
    compute=compute,
    record=record,
    group="pages",
    side=True,
)
