"""The Kubeflow face of the stage ``merge_scores``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("score"), install_kfp_package=False)
def merge_scores(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    parts: dsl.Input[list[dsl.Artifact]],
    scores: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Put together the scores that several tasks computed.

    Args:
        config: The resolved configuration, with the prompts.
        model: The fine-tuned model.
        factors: Its influence factors.
        train_data: The training examples.
        generations: The models' own answers, queries where the settings say so.
        parts: Those of every task.

    Returns:
        scores: The score matrix, the top of both ends per query with its tokens and modules, and the self-influence.
        metrics: Queries and examples.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import merge_scores as stage

    result = stage.run(
        config=Path(config.path),
        model=Path(model.path),
        factors=Path(factors.path),
        train_data=Path(train_data.path),
        generations=Path(generations.path),
        parts=[Path(one.path) for one in parts],
        scores=Path(scores.path),
    )
    log_metrics(metrics, result.metrics)
