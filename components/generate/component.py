"""The Kubeflow component of the stage ``generate``."""

from kfp import dsl

from whence.components.images import component


@component
def generate(
    model: dsl.Input[dsl.Model],
    eval_data: dsl.Input[dsl.Dataset],
    generations: dsl.Output[dsl.Dataset],
    champion: dsl.Input[dsl.Model] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("generate", locals())
