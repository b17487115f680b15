"""Stage ``find_champion``: is there anything to retrain for, and which model would have to be beaten? No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whence.running import artifacts
from whence.running.declaration import Parameter, Stage, Work

if TYPE_CHECKING:
    from whence.tracking.registry import Registry, Version

CHANGED = Parameter("changed", bool, "Whether a candidate is to be trained.")
CHAMPION_VERSION = Parameter("champion_version", str, "The champion's version number, empty where there is none.", "")


def compute(work: Work) -> dict[str, float]:
    """Look up the champion, and compare what it comes from with what a new model would come from.

    A new model is to be trained when the training data, the base model or a setting that decides a model differs from
    the champion's, or there is no champion yet; but not for what a version came from that was rolled back, or that the
    gate refused where it would decide by the same again.

    Raises:
        ConfigError: a measure of the gate cannot be taken of this data.
        TrackingError: the registry cannot be read, or the champion's files are not those that were registered.
    """
    from whence.data.dataset import ExampleSet
    from whence.data.prompts import load_prompts
    from whence.evaluation.gate import check_rules
    from whence.evaluation.metrics import AnswerKind
    from whence.files import write_atomically
    from whence.running.lineage import write_absent
    from whence.running.provenance import changes, judged_by, provenance
    from whence.tracking.registry import Registry

    config, eval_data = work.config, work.inputs["eval_data"]
    references = [prompt.reference for prompt in load_prompts(config) if prompt.reference]
    held_out = ExampleSet.read(eval_data).frame
    rows = AnswerKind.of(held_out["label"].tolist(), held_out["completion"].tolist())
    check_rules(config, rows, AnswerKind.of_text(references) if references else None)
    registry = Registry(config)
    champion = registry.champion()
    version = champion.number if champion else ""
    now = provenance(config, work.inputs["base_model"], work.inputs["train_data"])
    attempt = _earlier_attempt(registry, now, judged_by(config, eval_data, version))
    differences = [] if champion is None else changes(now, champion.tags)
    changed = attempt is None and (champion is None or bool(differences))
    if changed and champion is not None:
        _fetch(registry, champion, work.outputs["champion"])
    else:
        write_absent(work.outputs["champion"], "no training" if not changed else "there is no champion yet")
    write_atomically(work.outputs["changes"], _summary(registry.name, champion, attempt, differences))
    work.returns |= {CHANGED.name: changed, CHAMPION_VERSION.name: version}
    return {"changed": float(changed), "champion_version": float(version or 0)}


def _earlier_attempt(registry: Registry, now: Mapping[str, str], judged: str) -> Version | None:
    """A version of the same provenance that was rolled back, or else refused by the same rules: it would be again."""
    from whence.running.provenance import DATA_TAG, changes
    from whence.tracking.registry import REFUSED_TAG

    same = [version for version in registry.versions(DATA_TAG, now[DATA_TAG]) if not changes(now, version.tags)]
    rolled_back = [version for version in same if version.rolled_back]
    refused = [version for version in same if version.tags.get(REFUSED_TAG) == judged]
    return next(iter(rolled_back + refused), None)


def _fetch(registry: Registry, version: Version, folder: Path) -> None:
    from whence.errors import TrackingError
    from whence.running.provenance import model_digest
    from whence.tracking.registry import CONTENT_TAG

    registry.download(version, folder)
    registered = version.tags.get(CONTENT_TAG)
    if registered is not None and model_digest(folder) != registered:
        raise TrackingError(
            f"version {version.number} of {registry.name!r}: its files at {version.source} are not those that were "
            "registered",
            hint="make another version the champion with: whence champion set VERSION",
        )


def _summary(name: str, champion: Version | None, attempt: Version | None, differences: list[str]) -> str:
    against = f"the champion, version {champion.number} of `{name}`" if champion else "the base model"
    if champion is not None and not differences:
        return f"**No training.** Data, base model and settings are those of {against}.\n"
    if attempt is not None:
        what = "was rolled back" if attempt.rolled_back else f"the gate refused against {against}"
        return (
            f"**No training.** These data and settings gave version {attempt.number} of `{name}`, which {what}. Change "
            f"one of them, or make it the champion all the same: `whence champion set {attempt.number}`.\n"
        )
    if champion is None:
        return f"**First training.** `{name}` has no champion yet; the candidate has to beat the base model.\n"
    listed = "\n\n".join(f"→ `{line.replace('`', chr(39))}`" for line in differences)
    return f"**Training a candidate.** Since {against}:\n\n{listed}\n"


def record(work: Work) -> None:
    from whence.tracking.server import ENDS_WITH_TAG

    work.run.log_artifact(work.outputs["changes"], name="changes.md")
    work.run.describe(work.outputs["changes"].read_text(encoding="utf-8"))
    work.run.set_parent_tags({ENDS_WITH_TAG: "promote" if work.returns[CHANGED.name] else "find_champion"})


STAGE = Stage(
    name="find_champion",
    help="Look up the champion, and whether data or settings have changed since.",
    inputs=(artifacts.BASE_MODEL, artifacts.TRAIN_DATA, artifacts.EVAL_DATA),
    outputs=(artifacts.CHAMPION, artifacts.CHANGES),
    returns=(CHANGED, CHAMPION_VERSION),
    settings=("retraining", "tracking.registered_model"),
    compute=compute,
    record=record,
    group="pages",
    reuse=False,  # the champion may be another one by now
)
