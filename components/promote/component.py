"""The Kubeflow component of the stage ``promote``."""

from kfp import dsl

from whence.components.images import component


@component
def promote(
    decision: dsl.Input[dsl.Metrics],
    promotion: dsl.Output[dsl.Markdown],
) -> None:
    from whence.kubeflow import run_component

    run_component("promote", locals())
