"""The pipelines there are, by the name that the commands take."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from whence.config import Config

if TYPE_CHECKING:
    from kfp.dsl.graph_component import GraphComponent

    from whence.pipelines.graphs.placement import Placement


class PipelineKind(StrEnum):
    """Which graph; the settings are the same for all."""

    ATTRIBUTION = "attribution"
    RETRAINING = "retraining"

    def build(self, config: Config, placement: Placement | None = None) -> GraphComponent:
        """The pipeline of ``config``; without a placement for this machine."""
        from whence.pipelines.graphs.attribution import attribution_pipeline  # kfp takes seconds to import
        from whence.pipelines.graphs.placement import HERE
        from whence.pipelines.graphs.retraining import retraining_pipeline

        builders = {PipelineKind.ATTRIBUTION: attribution_pipeline, PipelineKind.RETRAINING: retraining_pipeline}
        return builders[self](config, placement or HERE)


def stages_of(graph: GraphComponent) -> tuple[str, ...]:
    """The stages of a pipeline, each after those whose outputs it takes."""
    from whence.stages import stages

    executors = graph.pipeline_spec.deployment_spec["executors"]
    return tuple(stage.name for stage in stages().values() if f"exec-{stage.title}" in executors)


KindOption = Annotated[
    PipelineKind | None,
    typer.Option(
        "--pipeline",
        help="attribution by default; retraining trains only after a change, and promotes only what is better than "
        "the champion.",
    ),
]
