"""How stages find the record of their pipeline run: by its id, which `whence run` sets the same way locally."""

from kfp import kubernetes
from kfp.dsl import PipelineTask

RUN_ID_VARIABLE = "KFP_RUN_ID"


def with_run_id(*tasks: PipelineTask) -> None:
    """Have the tasks' pods see the id of their run."""
    for task in tasks:
        kubernetes.use_field_path_as_env(task, RUN_ID_VARIABLE, "metadata.labels['pipeline/runid']")
