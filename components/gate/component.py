"""The Kubeflow face of the stage ``gate``."""

from typing import Optional

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("compare"), install_kfp_package=False)
def gate(
    config: dsl.Input[dsl.Artifact],
    champion_version: str,
    eval_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    passed: dsl.OutputPath(bool),  # type: ignore[valid-type]
    benchmark: Optional[dsl.Input[dsl.Dataset]] = None,  # noqa: UP045  (kfp reads no other form)
) -> bool:
    """Decide whether the candidate may take the champion's place.

    Args:
        config: The configuration in which the champion stands in the base model's place.
        champion_version: The champion's version number, empty where the base model stands in for it.
        eval_data: The held-out examples, which both models have answered.
        generations: The answers of champion and candidate to the same rows and prompts.
        benchmark: Their predictions for the same questions; none where the benchmark is switched off.

    Returns:
        decision: The decision with every check and its interval (decision.json).
        summary: The same for reading.
        metrics: Whether it passed, and the lower bound that each rule looked at.
        passed: Whether the candidate may be promoted.
        Output: Whether its factors and scores are wanted.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import gate as stage

    result = stage.run(
        config=Path(config.path),
        champion_version=champion_version,
        eval_data=Path(eval_data.path),
        generations=Path(generations.path),
        benchmark=None if benchmark is None else Path(benchmark.path),
        decision=Path(decision.path),
        summary=Path(summary.path),
    )
    log_metrics(metrics, result.metrics)
    Path(passed).write_text("true" if result.metrics["passed"] else "false", encoding="utf-8")
    return bool(result.metrics["explain"])
