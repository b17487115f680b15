"""The Kubeflow component of the stage ``score``."""

from kfp import dsl

from whence.components.images import component


@component
def score(
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    task: int = -1,
    parts: dsl.Input[list[dsl.Artifact]] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("score", locals())
