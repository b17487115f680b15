"""The Kubeflow face of the stage ``promote``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("compare"), install_kfp_package=False)
def promote(
    config: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Make the candidate the champion in the model registry, if the one it was compared with still is.

    Args:
        config: The resolved configuration.
        decision: What the gate decided.

    Returns:
        summary: What was done, for reading.
        metrics: Whether the alias was moved, and the champion's version.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import promote as stage

    result = stage.run(config=Path(config.path), decision=Path(decision.path), summary=Path(summary.path))
    log_metrics(metrics, result.metrics)
