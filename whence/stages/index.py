"""Stage ``index``: what a new question is compared with, of the codes that ``score`` has made in its pass. No torch."""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import Stage, Work


def compute(work: Work) -> dict[str, float]:
    from whence.files import link_tree
    from whence.influence.index import FILES, Index, recall
    from whence.influence.results import Scores

    folder = work.outputs["index"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        link_tree(work.inputs["scores"] / name, folder / name)
    index, scores = Index.read(folder), Scores(work.inputs["scores"])
    found = recall(index, scores.matrix, scores.query_sketches, work.config.index.candidates // 2)
    return {"rows": float(index.info.rows), "bytes_per_row": float(index.codes.shape[1])} | found


def record(work: Work) -> None:
    work.run.log_artifacts(work.outputs["index"], "index")


STAGE = Stage(
    name="index",
    help="Make the index that new questions are answered from, and measure what it finds of the exact scores.",
    inputs=(artifacts.SCORES,),
    outputs=(artifacts.INDEX,),
    settings=("index",),
    compute=compute,
    record=record,
    group="influence",
    switch="index.enabled",
)
