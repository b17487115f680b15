"""The Kubeflow component of the stage ``fit_factors``."""

from kfp import dsl

from whence.components.images import component


@component
def fit_factors(
    model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    factors: dsl.Output[dsl.Artifact],
    phase: str = "",
    task: int = -1,
    eigenvectors: dsl.Input[dsl.Artifact] = None,
    parts: dsl.Input[list[dsl.Artifact]] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("fit_factors", locals())
