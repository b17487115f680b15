"""The Kubeflow face of the stage ``fit_factors``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("fit_factors"), install_kfp_package=False)
def fit_factors(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    factors: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fit the influence factors of the fine-tuned model on the analysis samples.

    Args:
        config: The resolved configuration.
        model: The fine-tuned model.
        train_data: The training examples, of which the analysis samples are taken.

    Returns:
        factors: The factors in kronfluence's own layout, and factors.json.
        metrics: Modules, examples and bytes.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import fit_factors as stage

    result = stage.run(
        config=Path(config.path),
        model=Path(model.path),
        train_data=Path(train_data.path),
        factors=Path(factors.path),
    )
    log_metrics(metrics, result.metrics)
