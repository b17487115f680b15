"""What the tasks of a check have found, gathered from their logs and, where one never began, from why it waits."""

from __future__ import annotations

import time
from collections import defaultdict

from whence.errors import WhenceError
from whence.pipelines.cluster import progress, runs
from whence.pipelines.cluster.logs import task_log
from whence.pipelines.cluster.progress import RunView
from whence.pipelines.cluster.tasks import Task
from whence.running.cluster_checks import Outcome

STARTING = "image"  # the check that a task without an image fails


def gather(view: RunView, patience: float) -> dict[Outcome, list[str]]:
    """Wait for the run's end, or end it after ``patience`` seconds; the tasks by what they have found."""
    until = time.monotonic() + patience
    while True:
        run, tasks = view.look()
        if run.state in runs.ENDED:
            break
        if time.monotonic() > until:
            runs.cancel(view.client, view.run_id)
            break
        time.sleep(progress.POLL)
    found: dict[Outcome, list[str]] = defaultdict(list)
    for task in tasks:
        for outcome in _outcomes(view, task):
            found[outcome].append(task.name)
    return found


def _outcomes(view: RunView, task: Task) -> list[Outcome]:
    passed = task.state == "SUCCEEDED"
    if task.group or task.state == "SKIPPED":
        return []
    try:
        log = task_log(view, task.name)[1] if task.state in ("SUCCEEDED", "FAILED") else ""
    except WhenceError as error:
        return [Outcome(STARTING, passed, "has run; its log is out of reach" if passed else f"{task.message} {error}")]
    if outcomes := Outcome.read(log):
        return outcomes
    if passed:  # the one that writes the artifact
        return []
    last = (log.strip().splitlines() or [""])[-1]
    why = task.message or last or "look: kubectl describe pods -l pipeline/runid=" + view.run_id
    return [Outcome(STARTING, False, f"{task.state.lower()}: {why}")]
