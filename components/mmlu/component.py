"""The Kubeflow component of the stage ``mmlu``."""

from kfp import dsl

from whence.components.images import component


@component
def mmlu(
    model: dsl.Input[dsl.Model],
    benchmark: dsl.Output[dsl.Metrics],
    champion: dsl.Input[dsl.Model] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("mmlu", locals())
