"""A run in Kubeflow as people see it: its tasks and their states, followed to the end if wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kfp_server_api as api
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from whence.errors import PipelineError
from whence.pipelines.cluster import client as cluster
from whence.pipelines.cluster.connection import Connection
from whence.pipelines.cluster.faults import Unanswered
from whence.pipelines.local.board import format_seconds

FINISHED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}
STYLES = {
    "SUCCEEDED": "green",
    "RUNNING": "bold cyan",
    "FAILED": "bold red",
    "CANCELED": "yellow",
    "CANCELING": "yellow",
    "PAUSED": "yellow",
}
POLL = 5.0  # seconds between two looks at a run
PATIENCE = 300.0  # seconds without an answer after which following ends
DRIVER = "-driver"  # the pod that prepares a task; only its failure is of interest


@dataclass
class Task:
    """One task of a run: ``leaf`` if it does work, which loops, conditions and nested pipelines do not."""

    task_id: str
    name: str
    state: str
    leaf: bool
    started: datetime | None
    ended: datetime | None
    message: str

    def seconds(self) -> float | None:
        """How long it took, or has taken so far."""
        if self.started is None:
            return None
        end = self.ended if self.state in FINISHED and self.ended is not None else datetime.now(UTC)
        return max((end - self.started).total_seconds(), 0.0)


def tasks_of(run: api.V2beta1Run, names: Mapping[str, bool]) -> list[Task]:
    """The tasks of ``run`` in the order they began; the pods around them (drivers, executors) are left out.

    Args:
        run: as the API gives it: one entry per pod and per group of pods.
        names: the tasks of its pipeline by name, and whether each does work.
    """
    details = (run.run_details.task_details if run.run_details is not None else None) or []
    tasks = []
    for detail in details:
        shown = str(detail.display_name or "")
        name = shown.removesuffix(DRIVER)
        failed_driver = shown != name and detail.state == "FAILED"
        if name not in names or (shown != name and not failed_driver):
            continue
        started, ended = _moment(detail.start_time), _moment(detail.end_time)
        tasks.append(
            Task(detail.task_id, name, detail.state or "PENDING", names[name], started, ended, _message(detail.error))
        )
    return sorted(tasks, key=lambda task: task.started or datetime.max.replace(tzinfo=UTC))


def task_table(tasks: list[Task]) -> Table:
    """Tasks with their states and times."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("task", "state", "began (UTC)", "took", ""):
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=column != "")
    for task in tasks:
        seconds = task.seconds()
        began = "" if task.started is None else task.started.astimezone(UTC).strftime("%m-%d %H:%M:%S")
        took = "" if seconds is None else format_seconds(seconds)
        table.add_row(escape(task.name), state_text(task.state), began, took, escape(task.message))
    return table


def state_text(state: str | None) -> Text:
    """A state in its colour; a run that has none yet waits."""
    state = state or "PENDING"
    return Text(state.lower(), style=STYLES.get(state, "dim"))


def follow(connection: Connection, run_id: str, console: Console) -> None:
    """Print every change of a task's state until the run has ended.

    Raises:
        PipelineError: the run failed or was cancelled; names the tasks that failed.
        ClusterError: the server did not answer for minutes, or the login expired; the run goes on.
    """
    seen: dict[str, str] = {}
    answered, silent = time.monotonic(), False
    names: dict[str, bool] | None = None
    while True:
        try:
            run = cluster.get_run(connection, run_id)
            names = cluster.task_names(connection, run) if names is None else names
            answered, silent = time.monotonic(), False
        except Unanswered as error:
            if time.monotonic() - answered > PATIENCE:
                raise
            if not silent:
                console.print(f"[yellow]{escape(str(error))}; still trying[/]", soft_wrap=True, highlight=False)
            silent = True
            time.sleep(POLL)
            continue
        tasks = tasks_of(run, names)
        for task in tasks:
            if seen.get(task.task_id) != task.state:
                seen[task.task_id] = task.state
                clock = datetime.now().strftime("%H:%M:%S")
                console.print(f"{clock}  {escape(task.name)}", state_text(task.state), highlight=False)
        if run.state in FINISHED:
            raise_unless_succeeded(run, tasks)
            return
        time.sleep(POLL)


def raise_unless_succeeded(run: api.V2beta1Run, tasks: list[Task]) -> None:
    """Raise for a run that ended otherwise than well.

    Raises:
        PipelineError: it failed or was cancelled.
    """
    if run.state in ("SUCCEEDED", "SKIPPED"):
        return
    failed = [task for task in tasks if task.state == "FAILED"]
    failed = [task for task in failed if task.leaf] or failed
    named = "; ".join(f"task {task.name} failed{task.message and f' ({task.message})'}" for task in failed)
    why = named or _message(run.error) or "no task says why"
    raise PipelineError(f"run {run.run_id}: {str(run.state).lower()}: {why}; its log is in the Kubeflow UI")


def _message(error: Any) -> str:
    return " ".join(str(error.message or "").split()) if error is not None else ""


def _moment(value: datetime | None) -> datetime | None:
    """A time of the API; the beginning of 1970, and anything before, means that it has not come yet."""
    if value is None or value.replace(tzinfo=value.tzinfo or UTC) < datetime(1970, 1, 2, tzinfo=UTC):
        return None
    return value.replace(tzinfo=value.tzinfo or UTC)


def age(moment: datetime | None) -> str:
    """How long ago, coarsely: ``3 h``."""
    if moment is None:
        return ""
    passed = datetime.now(UTC) - moment.replace(tzinfo=moment.tzinfo or UTC)
    for unit, length in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        if passed >= length:
            return f"{passed // length} {unit}"
    return "now"
