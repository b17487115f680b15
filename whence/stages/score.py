"""Stage ``score``: the influence of every training example on every query, and on itself.

Where several tasks share the scoring, each does its share (``task``), and one more puts together what they made.
"""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import TASK, TOKENS, Artifact, Kind, Stage, Work
from whence.running.roles import with_model_names

PARTS = Artifact(
    "parts", Kind.ARTIFACT, "The scores that every task has computed of its share.", optional=True, many=True
)


def compute(work: Work) -> dict[str, float]:
    import pandas as pd

    from whence.data.prompts import query_frame
    from whence.files import link_tree
    from whence.influence.scores import score, score_part
    from whence.models.trained import TrainedModel

    config = with_model_names(work.config, work.inputs["generations"])
    queries = query_frame(config, pd.read_parquet(work.inputs["generations"] / artifacts.GENERATIONS_FILE))
    factors, folder, task = work.inputs["factors"], work.outputs["scores"], work.parameters["task"]
    with TrainedModel.load_team(work.inputs["model"], work.inputs["train_data"], config) as (trained, team):
        if task >= 0:
            parts = score_part(trained, factors, queries, folder, task, team)
            return {"queries": float(len(queries)), "data_partitions": float(parts)}
        score(trained, factors, queries, folder, work.lists["parts"], team)
    link_tree(work.inputs["train_data"], folder / artifacts.SCORED_EXAMPLES)  # the rows that its columns are
    return {"queries": float(len(queries)), "examples": float(len(trained.examples))}


def record(work: Work) -> None:
    from whence.influence.results import Scores

    if work.parameters["task"] < 0:  # a share is kept only until all are put together
        work.run.log_table(Scores(work.outputs["scores"]).influences, "influences.json")
        work.run.log_artifacts(work.outputs["scores"], "scores")


STAGE = Stage(
    name="score",
    help="Score the influence of every training example on every query.",
    inputs=(artifacts.MODEL, artifacts.FACTORS, artifacts.TRAIN_DATA, artifacts.GENERATIONS, PARTS),
    outputs=(artifacts.SCORES,),
    parameters=(TASK,),
    settings=("general", "scores", "index", "prompts", *TOKENS),
    compute=compute,
    record=record,
    group="influence",
    gpu=True,
    divided=True,
)
