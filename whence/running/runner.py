"""Running one stage: its configuration, a tracked run, reuse of finished work, and events for a local run to show.

``compute`` and ``record`` are separate because reused work is not computed again, yet every pipeline run gets its
complete record.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from whence.config import Config
from whence.config_file import get_dotted
from whence.errors import DataError, message_of
from whence.progress import EVENTS_VARIABLE
from whence.running.declaration import TASK, Stage, Work
from whence.running.lineage import Absence, absence_of, config_of, hand_on, write_absent
from whence.running.workspace import Workspace, stage_key
from whence.tracking import stage_run


@dataclass(frozen=True)
class StageResult:
    """What a stage returns to its caller.

    Attributes:
        metrics: scalars, for the Kubeflow UI and the terminal.
        returns: the results that are plain values, by name.
        pipeline_url: where the record of the pipeline run is; None for a local file or an unreachable server.
    """

    metrics: dict[str, float]
    returns: dict[str, Any] = field(default_factory=dict)
    pipeline_url: str | None = None


def run_stage(
    stage: Stage,
    *,
    inputs: Mapping[str, Path | Sequence[Path] | None],
    outputs: Mapping[str, Path],
    parameters: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> StageResult:
    """Run one stage as a nested MLflow run.

    Args:
        inputs: by name; None or nothing for an optional one that was not made, a list where the stage takes many.
        outputs: where each output is to be written.
        parameters: the arguments that are plain values; the others have their defaults.
        overrides: settings by dotted key that win over those the inputs carry.

    Raises:
        WhenceError: an input is not there, or what the stage itself refuses.
    """
    started = time.monotonic()
    defaults = {one.name: one.default for one in stage.parameters if one.default is not None}
    arguments = defaults | dict(parameters or {})
    name = _name(stage, arguments)
    emit(name, "started")
    try:
        present, lists, absent = _sort_inputs(stage, inputs)
        carrier = None if stage.resolve else present[stage.inputs[0].name]
        config = stage.resolve(arguments) if stage.resolve else config_of(carrier, overrides)  # type: ignore[arg-type]
        if stage.switch is not None and get_dotted(config, stage.switch) is not True:
            why = f"switched off: {stage.switch} is false"
            for output in stage.outputs:
                write_absent(outputs[output.name], why)
                hand_on(config, carrier, outputs[output.name])
            emit(name, "skipped", message=why)
            return StageResult({})
        workspace = _workspace(stage, config, present, lists, arguments, outputs)
        with workspace.locked(), stage_run(config, name) as run:
            run.log_params(_values(config, stage.settings))
            work = Work(config, present, lists, absent, arguments, workspace.outputs, workspace.scratch, run)
            earlier = workspace.finished()
            if earlier is None:
                workspace.scratch.mkdir(parents=True, exist_ok=True)
                metrics = stage.compute(work)
                workspace.finish(metrics, work.returns)
            else:
                metrics, work.returns = earlier
            workspace.publish()
            for output in stage.outputs:
                if not output.is_page:
                    hand_on(work.config, carrier, outputs[output.name])
            kept = {"whence.key": workspace.key} if workspace.key else {}
            run.set_tags(kept | {"whence.reused": str(earlier is not None).lower()})
            run.log_metrics(metrics)
            stage.record(work)
            run_id, pipeline_url = run.run_id, run.pipeline_url
    except BaseException as error:
        emit(name, "failed", seconds=time.monotonic() - started, message=message_of(error))
        raise
    state = "finished" if earlier is None else "reused"
    seconds = time.monotonic() - started
    emit(name, state, seconds=seconds, metrics=metrics, mlflow_run_id=run_id, not_recorded=run.refused)
    return StageResult(metrics, work.returns, pipeline_url)


def hand_on_failure(stage: Stage, error: Exception, carrier: Path, outputs: Mapping[str, Path]) -> None:
    """Write outputs of a stage that has failed which say so, for a run that goes on without them."""
    why = f"{stage.title} failed: {message_of(error)}"
    for output in stage.outputs:
        path = outputs[output.name]
        if output.is_page:
            from whence.report.pages import notice_page  # not in the images of all stages

            path.write_text(notice_page(f"{stage.title} failed", why), encoding="utf-8")
            continue
        shutil.rmtree(path, ignore_errors=True)  # half of it may be there
        write_absent(path, why, failed=True)
        hand_on(config_of(carrier), carrier, path)


def emit(stage: str, state: str, **details: Any) -> None:
    """Append an event to the file named by ``WHENCE_EVENTS``, when somebody watches the run."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": stage, "state": state, "time": time.time(), **details}) + "\n")


def _name(stage: Stage, arguments: Mapping[str, Any]) -> str:
    """The stage's name for people and records; of one task of several with its phase and number from 1."""
    words = [stage.name, str(arguments.get("phase") or "")]
    if arguments.get(TASK.name, -1) >= 0:
        words.append(str(arguments[TASK.name] + 1))
    return "-".join(filter(None, words))


def _sort_inputs(
    stage: Stage, inputs: Mapping[str, Path | Sequence[Path] | None]
) -> tuple[dict[str, Path], dict[str, list[Path]], dict[str, Absence]]:
    """The inputs that are there, those that are lists, and why others are not.

    Raises:
        DataError: an input is missing, or was not made although the stage needs it.
    """
    present: dict[str, Path] = {}
    lists: dict[str, list[Path]] = {}
    absent: dict[str, Absence] = {}
    for artifact in stage.inputs:
        value = inputs.get(artifact.name)
        paths = [] if value is None else [value] if isinstance(value, Path) else list(value)
        for path in paths:
            if not path.exists():
                raise DataError(
                    f"{stage.name}: its input {artifact.name} is not there: {path}",
                    hint="run the stage that makes it first",
                )
        if artifact.many:
            lists[artifact.name] = paths
        elif paths and (absence := absence_of(paths[0])):
            absent[artifact.name] = absence
        elif paths:
            present[artifact.name] = paths[0]
        if not artifact.optional and artifact.name not in present:
            why = absent[artifact.name].why if artifact.name in absent else "nothing was passed for it"
            raise DataError(f"{stage.name}: cannot do without its input {artifact.name}: {why}")
    return present, lists, absent


def _workspace(
    stage: Stage,
    config: Config,
    inputs: Mapping[str, Path],
    lists: Mapping[str, list[Path]],
    arguments: Mapping[str, Any],
    outputs: Mapping[str, Path],
) -> Workspace:
    """Where the stage works, and what it has done there before: keyed by everything that decides its result."""
    if config.general.work_dir is None or not stage.reuse:
        return Workspace.in_place(stage.name, outputs)
    content = dict(inputs) | {f"{name}_{n}": path for name, paths in lists.items() for n, path in enumerate(paths)}
    values = _values(config, stage.settings)
    if stage.resolve is None:
        values |= {f"parameter {name}": value for name, value in arguments.items()}
    key = stage_key(stage.name, values, content)
    return Workspace.open(config.general.work_dir, stage.name, key, outputs)


def _values(config: Config, settings: Sequence[str]) -> dict[str, Any]:
    return {key: _plain(get_dotted(config, key)) for key in settings}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
