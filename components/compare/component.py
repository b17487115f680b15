"""The Kubeflow component of the stage ``compare``."""

from kfp import dsl

from whence.components.images import component


@component
def compare(
    generations: dsl.Input[dsl.Dataset],
    comparison: dsl.Output[dsl.Metrics],
    scores: dsl.Input[dsl.Dataset] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("compare", locals())
