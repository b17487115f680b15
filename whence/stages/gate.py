"""Stage ``gate``: may the candidate take the champion's place? No torch."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from whence.running import artifacts
from whence.running.declaration import Parameter, Stage, Work
from whence.running.roles import model_digests, with_model_names

if TYPE_CHECKING:
    from pathlib import Path

    from whence.config import Config
    from whence.evaluation.gate import Check, Decision

logger = logging.getLogger(__name__)

RULES = {"gain": "above", "loss": "at least"}
CHAMPION_VERSION = Parameter(
    "champion_version", str, "The champion's version number, empty where the base model is compared.", ""
)
EXPLAIN = Parameter("explain", bool, "Whether the candidate's factors and scores are wanted.")
PASSED = Parameter("passed", bool, "Whether the candidate may be promoted.")


def compute(work: Work) -> dict[str, float]:
    """Decide on the answers of both models.

    A refusal is noted with the candidate's version, so that ``find_champion`` does not have the same model trained and
    refused again at the next schedule.
    """
    import pandas as pd

    from whence.data.prompts import load_prompts
    from whence.errors import DataError
    from whence.evaluation.comparison import compare_benchmark, compare_models
    from whence.evaluation.gate import decide
    from whence.files import write_atomically
    from whence.running.provenance import judged_by

    missing, rules = work.absent.get("benchmark"), work.config.retraining
    if missing is not None and missing.failed and rules.use_mmlu:
        raise DataError(f"nothing can be decided on mmlu, because {missing.why}", hint="mend that and run again")
    generations, version = work.inputs["generations"], work.parameters["champion_version"]
    config = with_model_names(work.config, generations)
    answers, eval_answers = (
        pd.read_parquet(generations / name) for name in (artifacts.GENERATIONS_FILE, artifacts.EVAL_ANSWERS_FILE)
    )
    references = {prompt.prompt_id: prompt.reference for prompt in load_prompts(config)}
    metrics = compare_models(eval_answers, answers, references, config)["metrics"]
    if "benchmark" in work.inputs:
        predictions = pd.read_parquet(work.inputs["benchmark"] / artifacts.PREDICTIONS_FILE)
        metrics["mmlu"] = compare_benchmark(predictions, config)
    decision = decide(metrics, config.retraining)
    candidate = model_digests(generations)["finetuned"]
    _write(work.outputs["decision"], decision, version, candidate)
    if not decision.passed:
        _note_refusal(config, candidate, judged_by(config, work.inputs["eval_data"], version))
    write_atomically(work.outputs["verdict"], _summary(decision, version, config))
    lower_bounds = {f"{check.measure}.{check.rule}.low": check.low for check in decision.checks}
    explain = decision.passed or config.retraining.explain == "always"
    work.returns |= {PASSED.name: decision.passed, EXPLAIN.name: explain}
    return {"passed": float(decision.passed), "explain": float(explain), **lower_bounds}


def _note_refusal(config: Config, candidate: str, judged: str) -> None:
    from whence.errors import PromotionError, TrackingError
    from whence.tracking import upload_spool
    from whence.tracking.registry import Registry

    try:
        upload_spool(config)  # where the record of its training could not be delivered yet
        registry = Registry(config)
        registry.refuse(registry.holding(candidate), judged)
    except (TrackingError, PromotionError) as error:  # the decision stands without it
        logger.warning("the refusal is not noted, so the next scheduled run trains the same again: %s", error)


def _write(folder: Path, decision: Decision, champion_version: str, candidate: str) -> None:
    from whence.files import write_json

    content = {
        "passed": decision.passed,
        "reason": decision.reason,
        "champion_version": champion_version,
        "candidate_digest": candidate,
        "checks": json.loads(decision.table().to_json(orient="records")),
        "notes": list(decision.notes),
    }
    write_json(folder / artifacts.DECISION_FILE, content)


def _summary(decision: Decision, champion_version: str, config: Config) -> str:
    """A paragraph for each check: Kubeflow shows tables without room between columns, and lists without bullets."""
    against = f"the champion, version {champion_version}" if champion_version else "the base model (no champion yet)"
    verdict = "Passed" if decision.passed else "Refused"
    paragraphs = [
        f"**{verdict}** against {against}: {decision.reason}.",
        *map(_paragraph, decision.checks),
        f"Intervals of candidate minus champion: paired bootstrap, {config.evaluation.confidence:.0%}, "
        f"{config.evaluation.bootstrap_samples} resamples.",
        *(f"{note}." for note in decision.notes),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _paragraph(check: Check) -> str:
    mark, values = "✓" if check.passed else "✗", f"{check.champion:.4f} → {check.candidate:.4f}"
    return (
        f"{mark} {check.rule} of `{check.measure}`: {values}, {check.difference:+.4f} ({check.low:+.4f} to "
        f"{check.high:+.4f}); the lower bound must be {RULES[check.rule]} {check.bound:+.4f}"
    )


def record(work: Work) -> None:
    import pandas as pd

    from whence.tracking.server import CHAMPION_TAG, ENDS_WITH_TAG

    folder = work.outputs["decision"]
    decision = json.loads((folder / artifacts.DECISION_FILE).read_text(encoding="utf-8"))
    work.run.log_table(pd.DataFrame(decision["checks"]), "gate.json")
    work.run.log_parent_metrics({"gate.passed": float(decision["passed"])})
    work.run.log_artifacts(folder, "gate")
    work.run.log_artifact(work.outputs["verdict"], "gate", name="verdict.md")
    work.run.describe(work.outputs["verdict"].read_text(encoding="utf-8"))
    last = "promote" if decision["passed"] else "report" if work.returns[EXPLAIN.name] else "gate"
    work.run.set_parent_tags({ENDS_WITH_TAG: last, CHAMPION_TAG: "candidate" if decision["passed"] else "refused"})


STAGE = Stage(
    name="gate",
    help="Decide whether the candidate may take the champion's place.",
    inputs=(
        artifacts.GENERATIONS,
        artifacts.EVAL_DATA,
        artifacts.BENCHMARK.without("No rule may guard it where it is switched off."),
    ),
    outputs=(artifacts.DECISION, artifacts.VERDICT),
    parameters=(CHAMPION_VERSION,),
    returns=(EXPLAIN, PASSED),
    settings=("retraining", "models", "evaluation.bootstrap_samples", "evaluation.confidence", "general.seed"),
    compute=compute,
    record=record,
    group="pages",
    reuse=False,  # cheap, and the champion's number is none of its inputs' content
)
