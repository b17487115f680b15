"""The Kubeflow face of the stage ``compare``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("compare"), install_kfp_package=False)
def compare(
    config: dsl.Input[dsl.Artifact],
    generations: dsl.Input[dsl.Dataset],
    scores: dsl.Input[dsl.Dataset],
    train_data: dsl.Input[dsl.Dataset],
    comparison: dsl.Output[dsl.Dataset],
    comparison_page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare base and fine-tuned model, and put every answer beside the training examples behind it.

    Args:
        config: The resolved configuration, with the prompts.
        generations: The answers of both models.
        scores: The influence scores.
        train_data: The training examples.

    Returns:
        comparison: Metrics with confidence intervals (comparison.json) and the table per prompt (parquet).
        comparison_page: The same for reading, as a page.
        metrics: Accuracy, exact match, macro-F1, ROUGE-L and chrF of both models.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import compare as stage

    result = stage.run(
        config=Path(config.path),
        generations=Path(generations.path),
        scores=Path(scores.path),
        train_data=Path(train_data.path),
        comparison=Path(comparison.path),
        comparison_page=Path(comparison_page.path),
    )
    log_metrics(metrics, result.metrics)
