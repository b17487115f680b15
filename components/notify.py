"""The Kubeflow component that says how a run ended, where `cluster.notify` asks for it."""

from kfp import dsl

from whence.components.images import image

STAGE = "compare"  # in the image of a stage without a model


@dsl.component(base_image=image(STAGE), install_kfp_package=False)
def notify(variable: str, profile: str, run: str, page: str, status: dsl.PipelineTaskFinalStatus) -> None:
    from whence.kubeflow import tell

    tell(variable, profile, run, page, status.state)
