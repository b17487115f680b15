"""The Kubeflow face of the stage ``score_part``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("score"), install_kfp_package=False)
def score_part(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    task: int,
    parts: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Score this task's share of the training examples on every query, and on themselves.

    Args:
        config: The resolved configuration, with the prompts.
        model: The fine-tuned model.
        factors: Its influence factors.
        train_data: The training examples.
        generations: The models' own answers, queries where the settings say so.
        task: The task's number, from 0.

    Returns:
        parts: The scores, by part of the data.
        metrics: Queries, and parts of the data.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import score_part as stage

    result = stage.run(
        config=Path(config.path),
        model=Path(model.path),
        factors=Path(factors.path),
        train_data=Path(train_data.path),
        generations=Path(generations.path),
        task=task,
        parts=Path(parts.path),
    )
    log_metrics(metrics, result.metrics)
