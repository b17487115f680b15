"""The Kubeflow component of the stage ``find_champion``."""

from kfp import dsl

from whence.components.images import component


@component
def find_champion(
    base_model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    eval_data: dsl.Input[dsl.Dataset],
    champion: dsl.Output[dsl.Model],
    changes: dsl.Output[dsl.Markdown],
    champion_version: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> bool:
    from whence.kubeflow import run_component

    return run_component("find_champion", locals())
