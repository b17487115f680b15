"""The Kubeflow face of the stage ``find_champion``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("compare"), install_kfp_package=False)
def find_champion(
    config: dsl.Input[dsl.Artifact],
    base_model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    eval_data: dsl.Input[dsl.Dataset],
    champion: dsl.Output[dsl.Model],
    challenge: dsl.Output[dsl.Artifact],
    champion_version: dsl.OutputPath(str),  # type: ignore[valid-type]
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> bool:
    """Look up the champion, and whether data or configuration have changed since.

    Args:
        config: The resolved configuration.
        base_model: The base model, or the reference to it.
        train_data: The training examples.
        eval_data: The held-out examples.

    Returns:
        champion: The champion's model, which a candidate has to beat; the base model where there is none yet.
        challenge: The configuration in which the champion stands in the base model's place.
        champion_version: Its version number in the model registry, empty where there is none yet.
        summary: What has changed, for reading.
        metrics: Whether anything has changed, and the champion's version.
        Output: Whether a candidate is to be trained.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import find_champion as stage

    result = stage.run(
        config=Path(config.path),
        base_model=Path(base_model.path),
        train_data=Path(train_data.path),
        eval_data=Path(eval_data.path),
        champion=Path(champion.path),
        challenge=Path(challenge.path),
        champion_version=Path(champion_version),
        summary=Path(summary.path),
    )
    log_metrics(metrics, result.metrics)
    return bool(result.metrics["changed"])
