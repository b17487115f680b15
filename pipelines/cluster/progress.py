"""A run in Kubeflow as people see it: its tasks and their states, followed to the end if wanted."""

from __future__ import annotations

import shlex
import time
from datetime import UTC, datetime, timedelta

import kfp_server_api as api
import tenacity
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from whence.errors import PipelineError
from whence.pipelines.cluster.client import Client
from whence.pipelines.cluster.faults import Unanswered
from whence.pipelines.cluster.runs import ENDED, get_run, state_of
from whence.pipelines.cluster.tasks import Node, Task, failed_tasks, tasks_of
from whence.pipelines.cluster.workflow import Unreadable, Workflows
from whence.pipelines.local.board import format_seconds

STYLES = {
    "SUCCEEDED": "green",
    "RUNNING": "bold cyan",
    "WAITING": "yellow",
    "FAILED": "bold red",
    "CANCELED": "yellow",
    "CANCELING": "yellow",
    "PAUSED": "yellow",
}
POLL = 5.0  # seconds between two looks at a run
PATIENCE = 300.0  # seconds without an answer after which following ends
LARGE = 60  # nodes in Kubeflow's answer from which on it may be the last: Argo compresses them, Kubeflow reads no more
WAITS_LONG = 60.0  # seconds of waiting after which it is said how to look


class RunView:
    """Looks at one run; the Workflow object is read as long as the kubeconfig lets us.

    Attributes:
        unreadable: why the Workflow object cannot be read; None while it can.
    """

    def __init__(self, client: Client, run_id: str, workflows: Workflows) -> None:
        self.client, self.run_id, self.workflows = client, run_id, workflows
        self.unreadable: str | None = None
        self.workflow: Node | None = None

    def look(self) -> tuple[api.V2beta1Run, list[Task]]:
        """The run and its tasks as they are now."""
        run = get_run(self.client, self.run_id)
        if self.unreadable is None:
            try:
                self.workflow = self.workflows.of_run(self.run_id) or self.workflow
            except Unreadable as error:
                self.unreadable, self.workflow = str(error), None
        return run, tasks_of(run, self.workflow)

    def note(self, run: api.V2beta1Run, tasks: list[Task]) -> str:
        """What the states leave open, and how to find out; empty if nothing."""
        if any(task.state == "UNKNOWN" for task in tasks):
            return "Kubeflow stops reporting the tasks of a large run, and its Workflow object is gone or out of reach."
        if self.workflow is None and run.state not in ENDED and len(run.run_details.task_details or ()) >= LARGE:
            last = max(moment for task in tasks for moment in (task.started, task.ended) if moment)
            return (
                "Kubeflow stops reporting the tasks of a run as large as this; the last it said is of "
                f"{last:%H:%M} UTC. Its Workflow object knows more: {self.unreadable or 'it is gone'}"
            )
        waiting = [task.name for task in tasks if task.state == "WAITING" and not task.message]
        if self.workflow is None and waiting and run.state not in ENDED:
            look = f"kubectl describe pods -n {self.workflows.namespace} -l pipeline/runid={self.run_id}"
            return f"Why {', '.join(waiting)} waits: {look} ({self.unreadable or 'it has no Workflow'})"
        return ""


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


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state.lower(), style=STYLES.get(state, "dim"))


def follow(view: RunView, console: Console) -> None:
    """Print every change of a task's state until the run has ended.

    Raises:
        PipelineError: the run failed or was cancelled; names the tasks that failed.
        ClusterError: the server did not answer for minutes, or the login expired; the run goes on.
    """

    def say(outage: tenacity.RetryCallState) -> None:
        if outage.attempt_number == 1 and outage.outcome is not None:
            error = escape(str(outage.outcome.exception()))
            console.print(f"[yellow]{error}; still trying[/]", soft_wrap=True, highlight=False)

    patiently = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unanswered),
        wait=tenacity.wait_fixed(POLL),
        stop=tenacity.stop_after_delay(PATIENCE),
        before_sleep=say,
        reraise=True,
    )
    seen: dict[str, tuple[str, str]] = {}
    changed, noted = time.monotonic(), ""
    while True:
        run, tasks = patiently(view.look)
        for task in tasks:
            if seen.get(task.name) != (task.state, task.message):
                seen[task.name] = (task.state, task.message)
                changed = time.monotonic()
                _print_change(console, task)
        if run.state in ENDED:
            raise_unless_succeeded(run, tasks)
            return
        note = view.note(run, tasks)
        if note != noted and time.monotonic() - changed >= WAITS_LONG:
            noted = note
            console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True, highlight=False)
        time.sleep(POLL)


def raise_unless_succeeded(run: api.V2beta1Run, tasks: list[Task]) -> None:
    """Raise for a run that ended otherwise than well.

    Raises:
        PipelineError: it failed or was cancelled.
    """
    state = state_of(run)
    if state in ("SUCCEEDED", "SKIPPED"):
        return
    if state == "CANCELED":
        raise PipelineError(f"run {run.run_id}: was cancelled", hint=f"go on with it: whence retry {run.run_id}")
    failed = failed_tasks(tasks)
    named = "; ".join(f"task {task.name} failed{task.message and f' ({task.message})'}" for task in failed)
    raise PipelineError(
        f"run {run.run_id}: failed: {named or 'no task says why'}; its log: "
        + shlex.join(["whence", "logs", run.run_id, *(task.name for task in failed[:1])])
    )


def age(moment: datetime | None) -> str:
    """How long ago, coarsely: ``3 h``."""
    if moment is None:
        return ""
    passed = datetime.now(UTC) - moment.replace(tzinfo=moment.tzinfo or UTC)
    for unit, length in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        if passed >= length:
            return f"{passed // length} {unit}"
    return "now"


def _print_change(console: Console, task: Task) -> None:
    line = Text.assemble(f"{datetime.now():%H:%M:%S}  {task.name} ", state_text(task.state))
    if task.message:
        line.append(f"  {task.message}")
    console.print(line, highlight=False, soft_wrap=True)
