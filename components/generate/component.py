"""The Kubeflow face of the stage ``generate``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("generate"), install_kfp_package=False)
def generate(
    config: dsl.Input[dsl.Artifact],
    base_model: dsl.Input[dsl.Model],
    model: dsl.Input[dsl.Model],
    eval_data: dsl.Input[dsl.Dataset],
    generations: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Answer the prompts and the held-out rows with the base and the fine-tuned model.

    Args:
        config: The resolved configuration, with the prompts.
        base_model: The base model, or the reference to it.
        model: The fine-tuned model.
        eval_data: The held-out examples.

    Returns:
        generations: Answers of both models to the prompts and to the held-out rows, as parquet.
        metrics: Prompts, rows and seconds per prompt.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import generate as stage

    result = stage.run(
        config=Path(config.path),
        base_model=Path(base_model.path),
        model=Path(model.path),
        eval_data=Path(eval_data.path),
        generations=Path(generations.path),
    )
    log_metrics(metrics, result.metrics)
