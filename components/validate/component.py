"""The Kubeflow face of the stage ``validate``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("validate"), install_kfp_package=False)
def validate(
    config: dsl.Input[dsl.Artifact],
    base_model: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    scores: dsl.Input[dsl.Dataset],
    evidence: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    retrainings: dsl.Input[list[dsl.Artifact]] = None,
) -> None:
    """Measure whether the attributions can be trusted, beside plain baselines, and grade the evidence in words.

    Args:
        config: The resolved configuration, with the prompts.
        base_model: The base model, or the reference to it, for training again.
        model: The fine-tuned model.
        factors: Its influence factors.
        train_data: The training examples, with the truth where the data knows it.
        generations: The models' own answers, queries where the settings say so.
        scores: The influence scores that are judged.
        retrainings: Those of every task of retrain_share; left out where this task does them all.

    Returns:
        evidence: Grade, measures with intervals, and what was not measured and why (evidence.json, a table as parquet).
        summary: The same for reading, as Markdown.
        metrics: Each measure of influence and of the baselines.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import validate as stage

    result = stage.run(
        config=Path(config.path),
        base_model=Path(base_model.path),
        model=Path(model.path),
        factors=Path(factors.path),
        train_data=Path(train_data.path),
        generations=Path(generations.path),
        scores=Path(scores.path),
        evidence=Path(evidence.path),
        summary=Path(summary.path),
        retrainings=[Path(one.path) for one in retrainings or []],
    )
    log_metrics(metrics, result.metrics)
