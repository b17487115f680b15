"""Stage ``find_champion``: is there anything to retrain for, and which model would have to be beaten? No torch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from whence.config import Config
from whence.config_file import load_config, parse_config
from whence.data.dataset import ExampleSet
from whence.data.prompts import load_prompts
from whence.errors import TrackingError
from whence.evaluation.gate import check_rules
from whence.files import write_atomically
from whence.stages.provenance import DATA_TAG, changes, judged_by, model_digest, provenance
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun
from whence.tracking.registry import CONTENT_TAG, REFUSED_TAG, Registry, Version


def run(
    *,
    config: Path,
    base_model: Path,
    train_data: Path,
    eval_data: Path,
    champion: Path,
    challenge: Path,
    champion_version: Path,
    summary: Path,
) -> StageResult:
    """Look up the champion, and compare what it comes from with what a new model would come from.

    The metric ``changed`` is 1 when a new model is to be trained: the training data, the base model or a setting that
    decides a model differs from the champion's, or there is no champion yet. It is 0 also for what a version came from
    that was rolled back, or that the gate refused where it would decide by the same again.

    Args:
        config: the resolved configuration.
        base_model: the base model, or the reference to it.
        train_data: the training examples.
        eval_data: the held-out examples.
        champion: receives the champion's model; the base model where there is no champion, so that the first candidate
            has to beat that, and where nothing is to be trained.
        challenge: receives the configuration in which the champion stands in the base model's place.
        champion_version: receives the champion's version number as text, empty where there is none.
        summary: receives what was found, as Markdown.

    Raises:
        ConfigError: a measure of the gate cannot be taken of this data.
        TrackingError: the registry cannot be read, or the champion's files are not those that were registered.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        references = sum(bool(prompt.reference) for prompt in load_prompts(settings))
        check_rules(settings, sorted(ExampleSet.read(eval_data).info.labels), references)
        registry = Registry(settings)
        found = registry.champion()
        now = provenance(settings, base_model, train_data)
        known = _known(registry, now, judged_by(settings, eval_data, found.number if found else ""))
        differing = [] if found is None else changes(now, found.tags)
        changed = known is None and (found is None or bool(differing))
        if changed and found is not None:
            _fetch(registry, found, work.outputs["champion"])
        else:
            shutil.copytree(base_model, work.outputs["champion"], dirs_exist_ok=True)
        write_atomically(work.outputs["challenge"], _challenge(settings, found).to_yaml())
        write_atomically(work.outputs["champion_version"], found.number if found else "")
        write_atomically(work.outputs["summary"], _summary(registry.name, found, known, differing))
        return {"changed": float(changed), "champion_version": float(found.number if found else 0)}

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifact(work.outputs["summary"], name="summary.md")

    outputs = {
        "champion": champion,
        "challenge": challenge,
        "champion_version": champion_version,
        "summary": summary,
    }
    return run_stage(
        "find_champion",
        settings,
        inputs={"base_model": base_model, "train_data": train_data, "eval_data": eval_data},
        outputs=outputs,
        settings=["retraining", "tracking.registered_model"],
        compute=compute,
        record=record,
        reuse=False,  # the champion may be another one by now
    )


def _known(registry: Registry, now: Mapping[str, str], judged: str) -> Version | None:
    """A version that came from the same and was taken back, or else refused by the same: it would only come again."""
    same = [version for version in registry.versions(DATA_TAG, now[DATA_TAG]) if not changes(now, version.tags)]
    taken_back = [version for version in same if version.rolled_back]
    refused = [version for version in same if version.tags.get(REFUSED_TAG) == judged]
    return next(iter(taken_back + refused), None)


def _fetch(registry: Registry, version: Version, folder: Path) -> None:
    registry.download(version, folder)
    registered = version.tags.get(CONTENT_TAG)
    if registered is not None and model_digest(folder) != registered:
        raise TrackingError(
            f"version {version.number} of {registry.name!r}: its files at {version.source} are not those that were "
            "registered; make another version the champion with: whence champion set VERSION"
        )


def _challenge(settings: Config, champion: Version | None) -> Config:
    """The stages that compare base and fine-tuned model compare champion and candidate with this."""
    names = {"models.base.id": "champion" if champion else settings.models.base.id, "models.finetuned.id": "candidate"}
    both = {"evaluation.mmlu.base": True, "evaluation.mmlu.finetuned": True}
    return parse_config(settings.to_yaml(), names | both)


def _summary(name: str, champion: Version | None, known: Version | None, differing: list[str]) -> str:
    against = f"the champion, version {champion.number} of `{name}`" if champion else "the base model"
    if champion is not None and not differing:
        return f"**No training.** Data, base model and settings are those of {against}.\n"
    if known is not None:
        what = "was rolled back" if known.rolled_back else f"the gate refused against {against}"
        return (
            f"**No training.** These data and settings gave version {known.number} of `{name}`, which {what}. Change "
            f"one of them, or make it the champion all the same: `whence champion set {known.number}`.\n"
        )
    if champion is None:
        return f"**First training.** `{name}` has no champion yet; the candidate has to beat the base model.\n"
    listed = "\n".join(f"- `{line.replace('`', chr(39))}`" for line in differing)
    return f"**Training a candidate.** Since {against}:\n\n{listed}\n"
