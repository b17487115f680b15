"""Stage ``validate``: whether this run's attributions can be trusted, measured and graded in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from whence.config import ALL_MEASURES, Config
from whence.config_file import load_config
from whence.stages.artifacts import EVIDENCE, EVIDENCE_TABLE, SCORES_INFO
from whence.stages.evidence import RETRAININGS, Gathering
from whence.stages.runner import StageResult, run_stage
from whence.stages.trained import SCORE_SETTINGS, numbered
from whence.stages.workspace import Workspace
from whence.tracking import StageRun
from whence.validation.evidence import Evidence, Measure, NotMeasured
from whence.validation.grade import grade
from whence.validation.summary import flat_table, headline, markdown

NOT_ASKED = "not asked for: {name} is not in validation.measures (`whence validate --full` measures everything)"
SETTINGS = [*SCORE_SETTINGS, "factors", "training", "validation", "evaluation.bootstrap_samples",
            "evaluation.confidence", "evaluation.batch_size", "models"]  # fmt: skip


def run(
    *,
    config: Path,
    base_model: Path,
    model: Path,
    factors: Path,
    train_data: Path,
    generations: Path,
    scores: Path,
    evidence: Path,
    summary: Path,
    retrainings: Sequence[Path] = (),
) -> StageResult:
    """Measure what ``validation.measures`` names, beside the baselines, and grade it.

    Args:
        config: the resolved configuration, with the prompts.
        base_model: the base model, or the reference to it, to train again.
        model: the fine-tuned model.
        factors: its influence factors.
        train_data: the training examples, with the truth where the data knows it.
        generations: the models' own answers, queries where ``scores.use_generated`` says so.
        scores: the influence scores that are judged.
        evidence: receives ``evidence.json`` (grade, measures with intervals, what was not measured and why),
            ``evidence.parquet`` (the same numbers as a table) and the outcomes of all retrainings.
        summary: receives the grade and the numbers as Markdown.
        retrainings: those of every task of ``retrain_share``; the missing ones are done here.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        gathering = Gathering.open(work.scratch, settings, model, base_model, factors, train_data, generations, scores)
        gathering.retrainer.adopt(retrainings)
        found = _gather(settings, gathering, scores)
        folder = work.outputs["evidence"]
        folder.mkdir(parents=True, exist_ok=True)
        found.write(folder / EVIDENCE)
        flat_table(found).to_parquet(folder / EVIDENCE_TABLE, index=False)
        for file in gathering.retrainings.glob("*.json"):  # what anybody would need to take the measures again
            (folder / RETRAININGS).mkdir(exist_ok=True)
            shutil.copy2(file, folder / RETRAININGS)
        work.outputs["summary"].write_text(markdown(found), encoding="utf-8")
        return headline(found)

    def record(work: Workspace, run: StageRun) -> None:
        found = Evidence.read(work.outputs["evidence"] / EVIDENCE)
        run.log_parent_metrics(headline(found))
        run.set_parent_tags({"whence.evidence": found.grade.word, "whence.evidence_sentence": found.grade.sentence})
        run.log_table(flat_table(found), "evidence.json")
        run.log_artifacts(work.outputs["evidence"], "evidence")
        run.log_artifact(work.outputs["summary"], "evidence", name="evidence.md")

    inputs = {"base_model": base_model, "model": model, "factors": factors, "train_data": train_data,
              "generations": generations, "scores": scores}  # fmt: skip
    return run_stage(
        "validate",
        settings,
        inputs=inputs | numbered("retrainings", retrainings),
        outputs={"evidence": evidence, "summary": summary},
        settings=SETTINGS,
        compute=compute,
        record=record,
    )


def _gather(settings: Config, gathering: Gathering, scores: Path) -> Evidence:
    """Take every measure that is asked for, and say why the others were not taken."""
    measures: list[Measure] = []
    missing: list[NotMeasured] = []
    for name in ALL_MEASURES:
        if name not in settings.validation.measures:
            missing.append(NotMeasured(name=name, why=NOT_ASKED.format(name=name)))
            continue
        result = getattr(gathering, name)()
        if isinstance(result, NotMeasured):
            missing.append(result)
        else:
            measures += result
    given = json.loads((scores / SCORES_INFO).read_text(encoding="utf-8"))
    return Evidence(
        grade=grade(measures),
        measures=measures,
        not_measured=missing,
        settings=settings.validation.model_dump(mode="json")
        | {"confidence": settings.evaluation.confidence, "bootstrap_samples": settings.evaluation.bootstrap_samples,
           "seed": settings.general.seed, "factors_strategy": settings.factors.strategy},
        fingerprints={name: given[name] for name in ("model", "factors", "train_data", "tokenizer")},
    )  # fmt: skip
