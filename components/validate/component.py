"""The Kubeflow component of the stage ``validate``."""

from kfp import dsl

from whence.components.images import component


@component
def validate(
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    scores: dsl.Input[dsl.Dataset],
    evidence: dsl.Output[dsl.Metrics],
    task: int = -1,
    retrainings: dsl.Input[list[dsl.Artifact]] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("validate", locals())
