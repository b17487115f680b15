"""The Kubeflow face of the stage ``retrain_share``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("validate"), install_kfp_package=False)
def retrain_share(
    config: dsl.Input[dsl.Artifact],
    base_model: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    scores: dsl.Input[dsl.Dataset],
    task: int,
    retrainings: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Do this task's share of the retrainings behind the counterfactual and the linear datamodeling score.

    Args:
        config: The resolved configuration, with the prompts.
        base_model: The base model, or the reference to it, for training again.
        model: The fine-tuned model.
        factors: Its influence factors.
        train_data: The training examples.
        generations: The models' own answers, queries where the settings say so.
        scores: The influence scores, which say what a counterfactual leaves out.
        task: The task's number, from 0.

    Returns:
        retrainings: A file per retraining: what it changed, and the log-probability of every query's answer.
        metrics: Their number.
    """
    from pathlib import Path

    from whence.kubeflow import log_metrics
    from whence.stages import retrain_share as stage

    result = stage.run(
        config=Path(config.path),
        base_model=Path(base_model.path),
        model=Path(model.path),
        factors=Path(factors.path),
        train_data=Path(train_data.path),
        generations=Path(generations.path),
        scores=Path(scores.path),
        task=task,
        retrainings=Path(retrainings.path),
    )
    log_metrics(metrics, result.metrics)
