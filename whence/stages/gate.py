"""Stage ``gate``: may the candidate take the champion's place? No torch."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd

from whence.config import Config
from whence.config_file import load_config
from whence.data.prompts import load_prompts
from whence.errors import PromotionError, TrackingError
from whence.evaluation.comparison import compare_benchmark, compare_models
from whence.evaluation.gate import Check, Decision, decide
from whence.files import write_atomically
from whence.stages.artifacts import ANSWERED_BY, DECISION, EVAL_ANSWERS, GENERATIONS, PREDICTIONS
from whence.stages.provenance import judged_by
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun, upload_spool
from whence.tracking.registry import Registry

logger = logging.getLogger(__name__)

RULES = {"gain": "above", "loss": "at least"}


def run(
    *,
    config: Path,
    champion_version: str,
    eval_data: Path,
    generations: Path,
    benchmark: Path | None = None,
    decision: Path,
    summary: Path,
) -> StageResult:
    """Decide on the answers of both models.

    The metric ``passed`` is 1 when the candidate may be promoted, ``explain`` when its factors and scores are wanted.
    A refusal is noted with the candidate's version, so that :mod:`whence.stages.find_champion` does not have the same
    model trained and refused again at the next schedule.

    Args:
        config: the configuration in which the champion stands in the base model's place.
        champion_version: the champion's version number, empty where the base model stands in for it.
        eval_data: the held-out examples, which both models have answered.
        generations: the answers of both models to the same rows and prompts.
        benchmark: the predictions of both models for the same questions; none where the benchmark is switched off.
        decision: receives ``decision.json``: whether it passed, every check with its interval, and which models and
            which champion it is about.
        summary: receives the same as Markdown.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        answers, eval_answers = (pd.read_parquet(generations / name) for name in (GENERATIONS, EVAL_ANSWERS))
        references = {prompt.prompt_id: prompt.reference for prompt in load_prompts(settings)}
        metrics = compare_models(eval_answers, answers, references, settings)["metrics"]
        if benchmark is not None:
            metrics["mmlu"] = compare_benchmark(pd.read_parquet(benchmark / PREDICTIONS), settings)
        decided = decide(metrics, settings.retraining)
        candidate = _candidate(settings, generations)
        _write(work.outputs["decision"], decided, champion_version, candidate)
        if not decided.passed:
            _note_refusal(settings, candidate, judged_by(settings, eval_data, champion_version))
        write_atomically(work.outputs["summary"], _summary(decided, champion_version, settings))
        lower_bounds = {f"{check.measure}.{check.rule}.low": check.low for check in decided.checks}
        explain = decided.passed or settings.retraining.explain == "always"
        return {"passed": float(decided.passed), "explain": float(explain), **lower_bounds}

    def record(work: Workspace, run: StageRun) -> None:
        decided = json.loads((work.outputs["decision"] / DECISION).read_text(encoding="utf-8"))
        run.log_table(pd.DataFrame(decided["checks"]), "gate.json")
        run.log_parent_metrics({"gate.passed": float(decided["passed"])})
        run.log_artifacts(work.outputs["decision"], "gate")
        run.log_artifact(work.outputs["summary"], "gate", name="summary.md")

    inputs = {"generations": generations, "eval_data": eval_data} | (
        {} if benchmark is None else {"benchmark": benchmark}
    )
    return run_stage(
        "gate",
        settings,
        inputs=inputs,
        outputs={"decision": decision, "summary": summary},
        settings=["retraining", "models", "evaluation.bootstrap_samples", "evaluation.confidence", "general.seed"],
        compute=compute,
        record=record,
        reuse=False,  # cheap, and the champion's number is none of its inputs' content
    )


def _candidate(settings: Config, generations: Path) -> str:
    digests = json.loads((generations / ANSWERED_BY).read_text(encoding="utf-8"))
    digest: str = digests[settings.models.finetuned.id]
    return digest


def _note_refusal(settings: Config, candidate: str, judged: str) -> None:
    try:
        upload_spool(settings)  # where the record of its training could not be delivered yet
        registry = Registry(settings)
        registry.refuse(registry.holding(candidate), judged)
    except (TrackingError, PromotionError) as error:  # the decision stands without it
        logger.warning("the refusal is not noted, so the next scheduled run trains the same again: %s", error)


def _write(folder: Path, decided: Decision, champion_version: str, candidate: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "passed": decided.passed,
        "reason": decided.reason,
        "champion_version": champion_version,
        "candidate_digest": candidate,
        "checks": json.loads(decided.table().to_json(orient="records")),
        "notes": list(decided.notes),
    }
    write_atomically(folder / DECISION, json.dumps(content, indent=1))


def _summary(decided: Decision, champion_version: str, settings: Config) -> str:
    against = f"the champion, version {champion_version}" if champion_version else "the base model (no champion yet)"
    verdict = "Passed" if decided.passed else "Refused"
    rows = ["| " + " | ".join(_cells(check)) + " |" for check in decided.checks]
    lines = [
        f"**{verdict}** against {against}: {decided.reason}.",
        "",
        "| measure | rule | champion | candidate | difference | interval | lower bound must be | passed |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Paired bootstrap intervals of {settings.evaluation.confidence:.0%} over "
        f"{settings.evaluation.bootstrap_samples} resamples, of candidate minus champion.",
        *(f"\n{note}." for note in decided.notes),
    ]
    return "\n".join(lines) + "\n"


def _cells(check: Check) -> list[str]:
    return [
        check.measure,
        check.rule,
        f"{check.champion:.4f}",
        f"{check.candidate:.4f}",
        f"{check.difference:+.4f}",
        f"{check.low:+.4f} to {check.high:+.4f}",
        f"{RULES[check.rule]} {check.bound:+.4f}",
        "yes" if check.passed else "**no**",
    ]
