"""Stage ``promote``: make the candidate the champion, if the one it was compared with still is. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from whence.config_file import load_config
from whence.errors import PromotionError
from whence.files import write_atomically
from whence.stages.artifacts import DECISION
from whence.stages.runner import StageResult, run_stage
from whence.stages.workspace import Workspace
from whence.tracking import StageRun, upload_spool
from whence.tracking.registry import Registry


def run(*, config: Path, decision: Path, summary: Path) -> StageResult:
    """Move the alias ``champion`` to the candidate's version; the one that had it becomes ``previous``.

    May be repeated: what is the champion already stays it, and the metric ``promoted`` is then 0.

    Args:
        config: the resolved configuration.
        decision: what the gate decided.
        summary: receives what was done, as Markdown.

    Raises:
        PromotionError: the gate refused the candidate; another version has become the champion since the comparison;
            or the candidate is not registered, or was rolled back.
    """
    settings = load_config(config)

    def compute(work: Workspace, run: StageRun) -> dict[str, float]:
        decided = json.loads((decision / DECISION).read_text(encoding="utf-8"))
        if not decided["passed"]:
            raise PromotionError(f"the gate refused this candidate ({decided['reason']}); it is not promoted")
        upload_spool(settings)  # where the record of its training could not be delivered yet
        registry = Registry(settings)
        candidate = registry.holding(decided["candidate_digest"])
        over = decided["champion_version"] or None
        promoted = registry.promote(candidate, over)
        write_atomically(work.outputs["summary"], _summary(registry.name, candidate.number, over, promoted))
        return {"promoted": float(promoted), "champion_version": float(candidate.number)}

    def record(work: Workspace, run: StageRun) -> None:
        run.log_artifact(work.outputs["summary"], name="summary.md")

    return run_stage(
        "promote",
        settings,
        inputs={"decision": decision},
        outputs={"summary": summary},
        settings=["tracking.registered_model"],
        compute=compute,
        record=record,
        reuse=False,  # the registry is what it changes
    )


def _summary(name: str, number: str, over: str | None, promoted: bool) -> str:
    if not promoted:
        return f"Version {number} of `{name}` is the champion already.\n"
    before = f"; version {over}, which was it before, is now `previous`" if over else ""
    return f"**Version {number} of `{name}` is the champion now**{before}. Back: `whence champion rollback`.\n"
