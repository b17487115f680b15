"""Stage ``validate``: whether this run's attributions can be trusted, measured and graded in words.

Where several tasks share the retrainings, each does its share (``task``), and one more measures with all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whence.config import ALL_MEASURES
from whence.running import artifacts
from whence.running.declaration import TASK, Artifact, Kind, Stage, Work

if TYPE_CHECKING:
    from whence.running.evidence import Gathering
    from whence.validation.evidence import Evidence

RETRAININGS = Artifact(
    "retrainings", Kind.ARTIFACT, "The retrainings that every task has done; what is missing is done here.",
    optional=True, many=True,
)  # fmt: skip
NOT_WANTED = "{name} is not in validation.measures (`whence validate --full` measures everything)"


def compute(work: Work) -> dict[str, float]:
    import shutil

    from whence.running.evidence import RETRAININGS, Gathering
    from whence.validation.summary import flat_table, headline, markdown

    gathering = Gathering.open(work)
    folder = work.outputs["evidence"]
    folder.mkdir(parents=True, exist_ok=True)
    if work.parameters["task"] >= 0:
        files = gathering.retrain(work.parameters["task"])
        for file in files:
            shutil.copy2(file, folder)
        return {"retrainings": float(len(files))}
    gathering.retrainer.adopt(work.lists["retrainings"])
    evidence = _gather(work, gathering)
    evidence.write(folder / artifacts.EVIDENCE_FILE)
    flat_table(evidence).to_parquet(folder / artifacts.EVIDENCE_TABLE_FILE, index=False)
    (folder / artifacts.EVIDENCE_PAGE_FILE).write_text(markdown(evidence), encoding="utf-8")
    for file in gathering.retrainings.glob("*.json"):  # what anybody would need to take the measures again
        (folder / RETRAININGS).mkdir(exist_ok=True)
        shutil.copy2(file, folder / RETRAININGS)
    return headline(evidence)


def _gather(work: Work, gathering: Gathering) -> Evidence:
    """Take every measure of the settings, and say why the others were not taken."""
    import json

    from whence.validation.evidence import Evidence, Measure, NotMeasured
    from whence.validation.grade import grade

    config = work.config
    measures: list[Measure] = []
    missing: list[NotMeasured] = []
    for name in ALL_MEASURES:
        if name not in config.validation.measures:
            missing.append(NotMeasured(name=name, why=NOT_WANTED.format(name=name)))
            continue
        result = getattr(gathering, name)()
        if isinstance(result, NotMeasured):
            missing.append(result)
        else:
            measures += result
    scored = json.loads((work.inputs["scores"] / artifacts.SCORES_INFO_FILE).read_text(encoding="utf-8"))
    return Evidence(
        grade=grade(measures),
        measures=measures,
        not_measured=missing,
        settings=config.validation.model_dump(mode="json")
        | {"confidence": config.evaluation.confidence, "bootstrap_samples": config.evaluation.bootstrap_samples,
           "seed": config.general.seed, "factors_strategy": config.factors.strategy},
        fingerprints={name: scored[name] for name in ("model", "factors", "train_data", "tokenizer")},
    )  # fmt: skip


def record(work: Work) -> None:
    from whence.validation.evidence import Evidence
    from whence.validation.summary import flat_table, headline

    if work.parameters["task"] >= 0:  # the outcomes are recorded where they are judged
        return
    evidence = Evidence.read(work.outputs["evidence"] / artifacts.EVIDENCE_FILE)
    work.run.log_parent_metrics(headline(evidence))
    tags = {"whence.evidence": evidence.grade.word, "whence.evidence_sentence": evidence.grade.sentence}
    work.run.set_parent_tags(tags)
    work.run.log_table(flat_table(evidence), "evidence.json")
    work.run.log_artifacts(work.outputs["evidence"], "evidence")


STAGE = Stage(
    name="validate",
    help="Measure whether the attributions can be trusted, and grade the evidence in words.",
    inputs=(artifacts.MODEL, artifacts.FACTORS, artifacts.TRAIN_DATA, artifacts.SCORES, RETRAININGS),
    outputs=(artifacts.EVIDENCE,),
    parameters=(TASK,),
    settings=(
        "general", "scores", "prompts", "dataset.loss_on", "dataset.template", "factors", "training", "validation",
        "evaluation.bootstrap_samples", "evaluation.confidence", "evaluation.batch_size",
    ),
    compute=compute,
    record=record,
    group="validation",
    gpu=True,
)  # fmt: skip
