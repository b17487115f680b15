"""The pipeline of ``whence cluster check``: a short task in the image and the place of every stage."""

from collections.abc import Sequence

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from whence.components.check import check, in_image, write_settings
from whence.config import Config, Prompts
from whence.pipelines.graphs.placement import HERE, Placement
from whence.pipelines.graphs.tasks import titled

FIRST = "prepare"  # the stage in whose image the artifact is made that all others fetch
HOURS = 0.2  # a check that takes longer has found something


def check_pipeline(config: Config, stages: Sequence[str], placement: Placement = HERE) -> GraphComponent:
    """Every task is placed as those of the stage are: what would hold up a run holds up this.

    Args:
        stages: whose images and nodes are tried.
        placement: where the tasks run.
    """
    small = config.model_copy(update={"prompts": Prompts(items=["Not asked."])})

    @dsl.pipeline(name="whence-check", display_name=f"Whence check: {config.profile}")
    def pipeline() -> None:
        first = titled(in_image(write_settings, FIRST), "settings")(settings=small.to_yaml())
        tasks = {name: titled(in_image(check, name), name.replace("_", "-")) for name in stages}
        placed = [(FIRST, first)] + [(name, task(stage=name, settings=first.output)) for name, task in tasks.items()]
        for name, task in placed:
            task.set_caching_options(False)
            placement.place(name, task, placement.form())

    return pipeline
