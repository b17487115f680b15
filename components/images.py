"""The components' decorator, and which container image runs which stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whence import __version__
from whence.errors import PipelineError

REGISTRY_VARIABLE = "WHENCE_IMAGE_REGISTRY"
TAG_VARIABLE = "WHENCE_IMAGE_TAG"
DIGESTS_VARIABLE = "WHENCE_IMAGE_DIGESTS"


def image(stage: str) -> str:
    """The image of a stage: ``<registry>/<stage>:<tag>``, e.g. ``whence/fit-factors:0.1.0``.

    Registry and tag are read from the environment when the components are imported, that is when a pipeline is
    compiled, and the digest from the file that ``docker/build.sh`` wrote, where one is named. Kubeflow's cache knows an
    image by this string, so tags must name one content for good.

    Raises:
        PipelineError: the tag is a moving one, or the file of digests does not have the image.
    """
    registry = os.environ.get(REGISTRY_VARIABLE, "whence").rstrip("/")
    tag = os.environ.get(TAG_VARIABLE, __version__)
    if tag == "latest":
        raise PipelineError(
            f"{TAG_VARIABLE}=latest moves, and Kubeflow would reuse results of old code", hint="give a version"
        )
    name = f"{registry}/{stage.replace('_', '-')}:{tag}"
    digests = os.environ.get(DIGESTS_VARIABLE)
    return _pinned(name, Path(digests)) if digests else name


def _pinned(name: str, digests: Path) -> str:
    try:
        known = [line for line in digests.read_text(encoding="utf-8").split() if line.startswith(f"{name}@sha256:")]
    except OSError as error:
        raise PipelineError(f"{DIGESTS_VARIABLE}: {digests} cannot be read: {error.strerror}") from error
    if not known:
        raise PipelineError(
            f"{DIGESTS_VARIABLE}: {digests} has no digest of {name}", hint=f"push it with DIGESTS={digests}"
        )
    return known[-1]


def component(function: Callable[..., Any]) -> Any:
    """``kfp.dsl.component`` for the stage that ``function`` is named after.

    The function is what Kubeflow executes, and every byte of it is kept several times in each task's Workflow object,
    so it has no docstring, and its body is one call; what inputs and outputs are is in the stage's declaration.
    """
    from kfp import dsl  # half a second, which commands that only need an image's name do not pay

    return dsl.component(function, base_image=image(function.__name__), install_kfp_package=False)
