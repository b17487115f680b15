"""The Kubeflow component of the stage ``gate``."""

from kfp import dsl

from whence.components.images import component


@component
def gate(
    generations: dsl.Input[dsl.Dataset],
    eval_data: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Metrics],
    verdict: dsl.Output[dsl.Markdown],
    passed: dsl.OutputPath(bool),  # type: ignore[valid-type]
    champion_version: str = "",
    benchmark: dsl.Input[dsl.Metrics] = None,
) -> bool:
    from whence.kubeflow import run_component

    return run_component("gate", locals())
