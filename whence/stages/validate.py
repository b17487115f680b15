"""Stage ``validate``: whether this run's attributions can be trusted, measured and graded in words.

Where several tasks share the retrainings, each does its share (``task``), and one more measures with all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whence.running import artifacts
from whence.running.declaration import TASK, TOKENS, Artifact, Kind, Stage, Work

if TYPE_CHECKING:
    from whence.validation.measures import Measures

RETRAININGS = Artifact(
    "retrainings", Kind.ARTIFACT, "The retrainings that every task has done; what is missing is done here.",
    optional=True, many=True,
)  # fmt: skip
FOLDER = "retrainings"  # of their outcomes


def compute(work: Work) -> dict[str, float]:
    import shutil

    from whence.validation.summary import flat_table, headline, markdown

    measures = _open(work)
    folder = work.outputs["evidence"]
    folder.mkdir(parents=True, exist_ok=True)
    if work.parameters["task"] >= 0:
        files = measures.retrain(work.parameters["task"])
        for file in files:
            shutil.copy2(file, folder)
        return {"retrainings": float(len(files))}
    measures.retrainer.adopt(work.lists["retrainings"])
    evidence = measures.evidence()
    evidence.write(folder / artifacts.EVIDENCE_FILE)
    flat_table(evidence).to_parquet(folder / artifacts.EVIDENCE_TABLE_FILE, index=False)
    (folder / artifacts.EVIDENCE_PAGE_FILE).write_text(markdown(evidence), encoding="utf-8")
    for file in measures.retrainings.glob("*.json"):  # what anybody would need to take the measures again
        (folder / FOLDER).mkdir(exist_ok=True)
        shutil.copy2(file, folder / FOLDER)
    return headline(evidence)


def _open(work: Work) -> Measures:
    """What can be measured of the inputs.

    Retrainings are kept in the work folder, if there is one, for all runs that train alike.
    """
    from pathlib import Path

    from whence.influence.results import Scores
    from whence.models.trained import TrainedModel
    from whence.running.lineage import BASE
    from whence.running.workspace import stage_key
    from whence.validation.measures import Measures

    config, (model, train_data) = work.config, (work.inputs[name] for name in ("model", "train_data"))
    retrainings = work.scratch / FOLDER
    if config.general.work_dir is not None:
        alike = {"training": config.training.model_dump(mode="json"), "loss_on": config.dataset.loss_on,
                 "max_length": config.general.max_length}  # fmt: skip
        key = stage_key(FOLDER, alike, {"base_model": model / BASE, "train_data": train_data})
        retrainings = Path(config.general.work_dir) / f"{FOLDER}-{key[:16]}"
    trained, scores = TrainedModel.load(model, train_data, config), Scores(work.inputs["scores"])
    measures = Measures(trained, scores, model, model / BASE, retrainings, work.scratch)
    measures.require_scores_of(work.inputs["factors"])
    return measures


def record(work: Work) -> None:
    from whence.validation.evidence import Evidence
    from whence.validation.summary import flat_table, headline

    if work.parameters["task"] >= 0:  # the outcomes are recorded where they are judged
        return
    evidence = Evidence.read(work.outputs["evidence"] / artifacts.EVIDENCE_FILE)
    work.run.log_parent_metrics(headline(evidence))
    work.run.set_parent_tags({"whence.evidence": evidence.grade.word})
    work.run.log_table(flat_table(evidence), "evidence.json", parent=True)
    work.run.log_artifacts(work.outputs["evidence"], "evidence")


STAGE = Stage(
    name="validate",
    help="Measure whether the attributions can be trusted, and grade the evidence in words.",
    inputs=(artifacts.MODEL, artifacts.FACTORS, artifacts.TRAIN_DATA, artifacts.SCORES, RETRAININGS),
    outputs=(artifacts.EVIDENCE,),
    parameters=(TASK,),
    settings=(
        "general", "scores", "prompts", *TOKENS, "factors", "training", "validation",
        "evaluation.bootstrap_samples", "evaluation.confidence", "evaluation.batch_size",
    ),
    compute=compute,
    record=record,
    group="validation",
    gpu=True,
    divided=True,
)  # fmt: skip
