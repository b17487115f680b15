"""The Kubeflow face of the stage ``fit_eigenvectors``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("fit_factors"), install_kfp_package=False)
def fit_eigenvectors(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    covariances: dsl.Input[list[dsl.Artifact]],
    eigenvectors: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Decompose the covariances that all tasks summed.

    Args:
        config: The resolved configuration.
        model: The fine-tuned model.
        train_data: The training examples, of which the analysis samples are taken.
        covariances: Those of every task.

    Returns:
        eigenvectors: Eigenvectors and eigenvalues by module.
        metrics: Modules.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import fit_eigenvectors as stage

    result = stage.run(
        config=Path(config.path),
        model=Path(model.path),
        train_data=Path(train_data.path),
        covariances=[Path(one.path) for one in covariances],
        eigenvectors=Path(eigenvectors.path),
    )
    log_metrics(metrics, result.metrics)
