"""The Kubeflow face of the stage ``mmlu``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("mmlu"), install_kfp_package=False)
def mmlu(
    config: dsl.Input[dsl.Artifact],
    base_model: dsl.Input[dsl.Model],
    model: dsl.Input[dsl.Model],
    benchmark: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Answer multiple-choice questions of the chosen subjects.

    Args:
        config: The resolved configuration.
        base_model: The base model, or the reference to it.
        model: The fine-tuned model.

    Returns:
        benchmark: Accuracy per subject and model (mmlu.json) and every prediction (parquet).
        metrics: Accuracy per subject and overall.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import mmlu as stage

    result = stage.run(
        config=Path(config.path),
        base_model=Path(base_model.path),
        model=Path(model.path),
        benchmark=Path(benchmark.path),
    )
    log_metrics(metrics, result.metrics)
