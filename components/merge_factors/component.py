"""The Kubeflow face of the stage ``merge_factors``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("fit_factors"), install_kfp_package=False)
def merge_factors(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    eigenvectors: dsl.Input[dsl.Artifact],
    lambdas: dsl.Input[list[dsl.Artifact]],
    factors: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Put together the factors that several tasks fitted.

    Args:
        config: The resolved configuration.
        model: The fine-tuned model.
        train_data: The training examples, of which the analysis samples are taken.
        eigenvectors: Of the covariances of all tasks.
        lambdas: Those of every task.

    Returns:
        factors: The factors in kronfluence's own layout, and factors.json.
        metrics: Modules, examples and bytes.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import merge_factors as stage

    result = stage.run(
        config=Path(config.path),
        model=Path(model.path),
        train_data=Path(train_data.path),
        eigenvectors=Path(eigenvectors.path),
        lambdas=[Path(one.path) for one in lambdas],
        factors=Path(factors.path),
    )
    log_metrics(metrics, result.metrics)
