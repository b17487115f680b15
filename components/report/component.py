"""The Kubeflow component of the stage ``report``."""

from kfp import dsl

from whence.components.images import component


@component
def report(
    scores: dsl.Input[dsl.Dataset],
    comparison: dsl.Input[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    tables: dsl.Output[dsl.Dataset],
    spectra: dsl.Input[dsl.Artifact] = None,
    evidence: dsl.Input[dsl.Metrics] = None,
    benchmark: dsl.Input[dsl.Metrics] = None,
) -> None:
    from whence.kubeflow import run_component

    run_component("report", locals())
