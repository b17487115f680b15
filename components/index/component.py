"""The Kubeflow component of the stage ``index``."""

from kfp import dsl

from whence.components.images import component


@component
def index(
    scores: dsl.Input[dsl.Dataset],
    index: dsl.Output[dsl.Metrics],
) -> None:
    from whence.kubeflow import run_component

    run_component("index", locals())
