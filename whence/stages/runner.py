"""What every stage shares: a tracked run, reuse of finished work, and events for whoever is watching.

A stage module holds two functions besides its ``run``: *compute* writes the outputs, *record* logs them to MLflow.
They are apart because reused work is not computed again, yet every pipeline run gets its complete record.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from whence.config import Config
from whence.config_file import get_dotted
from whence.errors import DataError, WhenceError
from whence.stages.workspace import Workspace, stage_key
from whence.tracking import StageRun, stage_run

EVENTS_VARIABLE = "WHENCE_EVENTS"


@dataclass(frozen=True)
class StageResult:
    """What a stage tells its component, for the Kubeflow UI: scalar metrics, and where the record of the run is."""

    metrics: dict[str, float]
    pipeline_url: str | None = None


def run_stage(
    name: str,
    config: Config,
    *,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    settings: Sequence[str],
    compute: Callable[[Workspace, StageRun], dict[str, float]],
    record: Callable[[Workspace, StageRun], None],
    reuse: bool = True,
) -> StageResult:
    """Run one stage as a nested MLflow run.

    Args:
        settings: dotted keys of the settings (or sections) that decide the result; they make the reuse key and the
            run's parameters.
        compute: writes ``workspace.outputs`` and returns the metrics; skipped when the same work is already done.
        record: logs what a reviewer needs for good, from ``workspace.outputs``.
        reuse: false for stages that look at the outside world and must look every time.
    """
    started = time.monotonic()
    emit(name, "started")
    try:
        workspace = open_workspace(name, config, inputs, outputs, settings, config.general.work_dir if reuse else None)
        with workspace.held(), stage_run(config, name) as run:
            run.log_params(_values(config, settings))
            metrics = workspace.finished() if workspace.kept else None
            reused = metrics is not None
            if metrics is None:
                workspace.scratch.mkdir(parents=True, exist_ok=True)
                metrics = compute(workspace, run)
                workspace.finish(metrics)
            workspace.publish()
            run.set_tags({"whence.key": workspace.key, "whence.reused": str(reused).lower()})
            run.log_metrics(metrics)
            record(workspace, run)
            run_id, pipeline_url = run.run_id, run.pipeline_url
    except BaseException as error:
        emit(name, "failed", seconds=time.monotonic() - started, message=explain(error))
        raise
    seconds = time.monotonic() - started
    emit(name, "reused" if reused else "finished", seconds=seconds, metrics=metrics, mlflow_run_id=run_id)
    return StageResult(metrics, pipeline_url)


def open_workspace(
    name: str,
    config: Config,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    settings: Sequence[str],
    work_dir: str | None,
) -> Workspace:
    """Where a stage with these inputs and settings works; arguments as for :func:`run_stage`.

    Raises:
        DataError: an input is not there.
    """
    _require(name, inputs)
    return Workspace.open(work_dir, name, stage_key(name, _values(config, settings), inputs), outputs)


def _values(config: Config, settings: Sequence[str]) -> dict[str, Any]:
    return {key: _plain(get_dotted(config, key)) for key in settings}


def emit(stage: str, state: str, **details: Any) -> None:
    """Append an event to the file named by ``WHENCE_EVENTS``, when somebody watches the run."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": stage, "state": state, "time": time.time(), **details}) + "\n")


def explain(error: BaseException) -> str:
    """The message for people: a WhenceError speaks for itself, anything else is named by its type."""
    return str(error) if isinstance(error, WhenceError) else f"{type(error).__name__}: {error}"


def _require(stage: str, inputs: Mapping[str, Path]) -> None:
    for name, path in inputs.items():
        if not path.exists():
            raise DataError(f"{stage}: its input {name} is not there: {path}; run the stage that makes it first")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
