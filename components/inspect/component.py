"""The Kubeflow component of the stage ``inspect``."""

from kfp import dsl

from whence.components.images import component


@component
def inspect(
    factors: dsl.Input[dsl.Artifact],
    spectra: dsl.Output[dsl.Artifact],
    spectra_page: dsl.Output[dsl.HTML],
) -> None:
    from whence.kubeflow import run_component

    run_component("inspect", locals())
