"""Stage ``promote``: make the candidate the champion, if the one it was compared with still is. No torch."""

from __future__ import annotations

import json

from whence.running import artifacts
from whence.running.declaration import Stage, Work


def compute(work: Work) -> dict[str, float]:
    """Move the alias ``champion`` to the candidate's version; the one that had it becomes ``previous``.

    May be repeated: a candidate that is the champion already stays so, and the metric ``promoted`` is then 0.

    Raises:
        PromotionError: the gate refused the candidate; another version has become the champion since the comparison;
            or the candidate is not registered, or was rolled back.
    """
    from whence.errors import PromotionError
    from whence.files import write_atomically
    from whence.tracking import upload_spool
    from whence.tracking.registry import Registry

    decision = json.loads((work.inputs["decision"] / artifacts.DECISION_FILE).read_text(encoding="utf-8"))
    if not decision["passed"]:
        raise PromotionError(f"the gate refused this candidate ({decision['reason']}); it is not promoted")
    upload_spool(work.config)  # where the record of its training could not be delivered yet
    registry = Registry(work.config)
    candidate = registry.holding(decision["candidate_digest"])
    champion = decision["champion_version"] or None
    promoted = registry.promote(candidate, champion)
    write_atomically(work.outputs["promotion"], _summary(registry.name, candidate.number, champion, promoted))
    return {"promoted": float(promoted), "champion_version": float(candidate.number)}


def _summary(name: str, number: str, champion: str | None, promoted: bool) -> str:
    if not promoted:
        return f"Version {number} of `{name}` is the champion already.\n"
    before = f"; version {champion}, the champion before, is now `previous`" if champion else ""
    return f"**Version {number} of `{name}` is the champion now**{before}. Back: `whence champion rollback`.\n"


def record(work: Work) -> None:
    from whence.tracking.server import CHAMPION_TAG

    work.run.log_artifact(work.outputs["promotion"], name="promotion.md")
    work.run.describe(work.outputs["promotion"].read_text(encoding="utf-8"))
    work.run.set_parent_tags({CHAMPION_TAG: "promoted"})


STAGE = Stage(
    name="promote",
    help="Make the candidate the champion, if the one it was compared with still is.",
    inputs=(artifacts.DECISION,),
    outputs=(artifacts.PROMOTION,),
    settings=("tracking.registered_model",),
    compute=compute,
    record=record,
    group="pages",
    reuse=False,  # the registry is what it changes
)
