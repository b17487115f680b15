"""The Kubeflow face of the stage ``inspect``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("inspect"), install_kfp_package=False)
def inspect(
    config: dsl.Input[dsl.Artifact],
    factors: dsl.Input[dsl.Artifact],
    spectra: dsl.Output[dsl.Artifact],
    spectra_page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Plot the factors' spectra, of all layers together and of one in full.

    Args:
        config: The resolved configuration.
        factors: The influence factors.

    Returns:
        spectra: Heat map of all layers; lambda, sorted lambda and cumulative share per module of one; a table of all.
        spectra_page: The same plots and the numbers behind them, as a page.
        metrics: Effective rank, share of the top 1 % and condition number, per module.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import inspect as stage

    result = stage.run(
        config=Path(config.path),
        factors=Path(factors.path),
        spectra=Path(spectra.path),
        spectra_page=Path(spectra_page.path),
    )
    log_metrics(metrics, result.metrics)
