"""The Kubeflow face of the stage ``fit_covariances``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("fit_factors"), install_kfp_package=False)
def fit_covariances(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    task: int,
    covariances: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Sum the covariances over this task's share of the analysis samples.

    Args:
        config: The resolved configuration.
        model: The fine-tuned model.
        train_data: The training examples, of which the analysis samples are taken.
        task: The task's number, from 0.

    Returns:
        covariances: The sums, by part of the data and module.
        metrics: Parts of the data.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import fit_covariances as stage

    result = stage.run(
        config=Path(config.path),
        model=Path(model.path),
        train_data=Path(train_data.path),
        task=task,
        covariances=Path(covariances.path),
    )
    log_metrics(metrics, result.metrics)
