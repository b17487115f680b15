"""The Kubeflow component of the stage ``train``."""

from kfp import dsl

from whence.components.images import component


@component
def train(
    base_model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    eval_data: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    loss_curve: dsl.Output[dsl.HTML],
    accelerator: str = "",
    accelerator_count: str = "",
) -> None:
    from whence.kubeflow import run_component

    run_component("train", locals())
