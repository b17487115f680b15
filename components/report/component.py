"""The Kubeflow face of the stage ``report``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("report"), install_kfp_package=False)
def report(
    config: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    history: dsl.Input[dsl.Artifact],
    generations: dsl.Input[dsl.Dataset],
    scores: dsl.Input[dsl.Dataset],
    comparison: dsl.Input[dsl.Dataset],
    spectra: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    tables: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    evidence: dsl.Input[dsl.Dataset] = None,
    benchmark: dsl.Input[dsl.Dataset] = None,
) -> None:
    """Write everything of the run on one page: answers, the examples behind them, and whether to believe it.

    Args:
        config: The resolved configuration, with the prompts.
        train_data: The training examples.
        history: What was logged while training.
        generations: The answers of both models.
        scores: The influence scores, with their parts by token and module.
        comparison: The measures of both models.
        spectra: The spectra of the factors.
        evidence: Whether the influences can be trusted; without it the page says that nobody has measured it.
        benchmark: The multiple-choice benchmark; left out where it is switched off.

    Returns:
        report: The report, one page that needs nothing else.
        summary: Its headlines.
        tables: Its tables as CSV.
        metrics: How many answers it holds, its size, and how many kinds of things it had to leave out.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import report as stage

    result = stage.run(
        config=Path(config.path),
        train_data=Path(train_data.path),
        history=Path(history.path),
        generations=Path(generations.path),
        scores=Path(scores.path),
        comparison=Path(comparison.path),
        spectra=Path(spectra.path),
        evidence=Path(evidence.path) if evidence else None,
        report=Path(report.path),
        summary=Path(summary.path),
        tables=Path(tables.path),
        benchmark=Path(benchmark.path) if benchmark else None,
    )
    log_metrics(metrics, result.metrics)
