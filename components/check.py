"""The Kubeflow component of ``whence cluster check``, which runs in the image of any stage, and the one before it."""

from typing import Any

from kfp import dsl

from whence.components.images import image


def write_settings(settings: str, written: dsl.Output[dsl.Artifact]) -> None:
    with open(written.path, "w", encoding="utf-8") as file:
        file.write(settings)


def check(stage: str, settings: dsl.Input[dsl.Artifact]) -> None:
    from whence.kubeflow import run_checks

    run_checks(stage, settings)


def in_image(function: Any, stage: str) -> Any:
    """The component of ``function`` in the image of a stage."""
    return dsl.component(function, base_image=image(stage), install_kfp_package=False)
