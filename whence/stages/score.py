"""Stage ``score``: the influence of every training example on every query, and on itself.

Where several tasks share the scoring, each does its share (``task``), and one more puts together what they made.
"""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import TASK, Artifact, Kind, Stage, Work
from whence.running.roles import with_model_names

PARTS = Artifact(
    "parts", Kind.ARTIFACT, "The scores that every task has computed of its share.", optional=True, many=True
)


def compute(work: Work) -> dict[str, float]:
    from whence.files import link_tree
    from whence.influence.scores import open_pairwise, open_self
    from whence.running.score_files import write_scores
    from whence.running.trained import Trained, share_of

    config = with_model_names(work.config, work.inputs["generations"])
    trained = Trained.load(config, work.inputs["model"], work.inputs["train_data"])
    frame, queries = trained.queries(work.inputs["generations"])
    folder, task = work.outputs["scores"], work.parameters["task"]
    folder.mkdir(parents=True, exist_ok=True)
    scoring = trained.scoring(work.inputs["factors"]) | {"sources": work.lists["parts"]}
    scoring["scratch"] = work.scratch if task < 0 else folder
    pairwise = open_pairwise(queries=queries, **scoring)
    own = open_self(**scoring) if config.scores.self_influence else None
    share = share_of(config, task, pairwise.data_partitions) if task >= 0 else range(pairwise.data_partitions)
    pairwise.compute(share)
    if own is not None:
        own.compute(share)
    if task >= 0:
        return {"queries": float(len(frame)), "data_partitions": float(len(share))}
    link_tree(work.inputs["train_data"], folder / artifacts.SCORED_EXAMPLES)  # the rows that its columns are
    return write_scores(folder, trained, work.inputs["factors"], frame, pairwise, own)


def record(work: Work) -> None:
    from whence.running.score_files import record_scores

    if work.parameters["task"] < 0:  # a share is kept only until all are put together
        record_scores(work.outputs["scores"], work.run)


STAGE = Stage(
    name="score",
    help="Score the influence of every training example on every query.",
    inputs=(artifacts.MODEL, artifacts.FACTORS, artifacts.TRAIN_DATA, artifacts.GENERATIONS, PARTS),
    outputs=(artifacts.SCORES,),
    parameters=(TASK,),
    settings=("general", "scores", "prompts", "dataset.loss_on", "dataset.template"),
    compute=compute,
    record=record,
    group="influence",
    gpu=True,
)
