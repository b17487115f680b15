"""Recurring runs. Kubeflow cannot change one, so a replacement is made first and the old one deleted after it.

Kubeflow deletes the workflow of a running run with its schedule, and lists the run as running for ever. So a schedule
goes only when none of its runs goes on, or after those have been cancelled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import kfp_server_api as api

from whence.errors import ClusterError, PipelineError, WhenceError
from whence.pipelines.cluster.client import Client, equals
from whence.pipelines.cluster.faults import Unanswered
from whence.pipelines.cluster.runs import ENDED, Version

DISABLED = "DISABLED"
CANCELLED_WITHIN = 120  # seconds for the pods of a cancelled run to end
POLL = 5  # seconds between two looks at it


class Created(NamedTuple):
    """A schedule that was made: its id, how many it replaced, and whether it is paused as those were."""

    schedule_id: str
    replaced: int
    paused: bool


def create_or_replace(
    client: Client, version: Version, name: str, *, experiment: str, force: bool = False, **options: Any
) -> Created:
    """Create a schedule, in place of those of its name.

    Args:
        name: shown in the UI.
        experiment: id of the experiment its runs are in.
        force: cancel the runs of the old one that go on.
        **options: as kfp's ``create_recurring_run`` takes them.

    Raises:
        PipelineError: another pipeline has a schedule of that name, or a run of the old one goes on.
        ClusterError: the old one could not be deleted; it was kept, and the new one is not there (or the message says
            that both are).
    """
    old = find(client, name)
    foreign = [entry for entry in old if _pipeline_of(entry) != version.pipeline_id]
    if foreign:
        raise PipelineError(
            f"schedule {name}: another pipeline has one of that name ({foreign[0].recurring_run_id})",
            hint=f"give another --name, or delete it first: whence schedule delete {foreign[0].recurring_run_id}",
        )
    for entry in old:
        _end_runs(client, entry, force)
    paused = bool(old) and all(entry.status == DISABLED for entry in old)

    def request() -> str:
        return client.create_recurring_run(
            experiment,
            name,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            enabled=not paused,
            **options,
        ).recurring_run_id

    new = client.create(f"schedule {name}", lambda: client.ids("recurring_runs", name), request)
    for entry in old:
        try:
            _delete(client, entry.recurring_run_id)
        except WhenceError as error:
            raise _restored(client, name, entry.recurring_run_id, new, error) from error
    return Created(new, len(old), paused)


def find(client: Client, name_or_id: str) -> list[api.V2beta1RecurringRun]:
    """The schedules of that name, or the one of that id; none is an empty list."""
    found = list_all(client, filter=equals(display_name=name_or_id))
    return found or [entry for entry in list_all(client) if entry.recurring_run_id == name_or_id]


def list_all(client: Client, **options: str) -> list[api.V2beta1RecurringRun]:
    """All schedules of the namespace, the newest first."""
    return client.list_all("recurring_runs", sort_by="created_at desc", **options)


def set_paused(client: Client, schedule_id: str, paused: bool) -> None:
    """Pause or resume; either may be said twice."""
    change = client.disable_recurring_run if paused else client.enable_recurring_run
    client.ask(f"schedule {schedule_id}", change, schedule_id)


def delete(client: Client, schedule: api.V2beta1RecurringRun, *, force: bool = False) -> list[str]:
    """Delete a schedule, and return the runs that were cancelled for it.

    Raises:
        PipelineError: a run of it goes on and ``force`` is not given.
    """
    cancelled = _end_runs(client, schedule, force)
    _delete(client, schedule.recurring_run_id)
    return cancelled


def _delete(client: Client, schedule_id: str) -> None:
    """Delete; one that is not there (any more, after a lost answer) counts as deleted."""

    def request() -> None:
        try:
            client.delete_recurring_run(schedule_id)
        except api.ApiException as error:
            if error.status != 404:
                raise

    client.ask(f"schedule {schedule_id}", request)


def _end_runs(client: Client, schedule: api.V2beta1RecurringRun, force: bool) -> list[str]:
    """Cancel the runs of a schedule that go on, wait for their end, and return them; refuse without ``force``."""
    runs = client.list_all("runs", filter=equals(recurring_run_id=schedule.recurring_run_id))
    active = [run.run_id for run in runs if run.state not in ENDED]
    if active and not force:
        raise PipelineError(
            f"schedule {schedule.display_name}: run {', '.join(active)} of it goes on and would be killed with it; "
            f"wait for its end (whence status {active[0]} --follow; meanwhile whence schedule pause "
            f"{schedule.display_name} starts no more), or have it cancelled with --force"
        )
    if active:
        set_paused(client, schedule.recurring_run_id, True)  # or the next one begins meanwhile
    for run_id in active:
        client.ask(f"run {run_id}", client.terminate_run, run_id)
    for run_id in active:
        try:
            client.ask(f"run {run_id}", client.wait_for_run_completion, run_id, CANCELLED_WITHIN, POLL)
        except TimeoutError as error:
            raise ClusterError(
                f"run {run_id}: is cancelled but has not ended within {CANCELLED_WITHIN} s, so its schedule "
                f"{schedule.display_name} is still there, paused",
                hint="try again later",
            ) from error
    return active


def _restored(client: Client, name: str, old: str, new: str, error: WhenceError) -> WhenceError:
    """Take the new schedule away again, so that one is left; the error to raise says what is there now."""
    try:
        _delete(client, new)
    except WhenceError:
        return ClusterError(
            f"schedule {name}: the old one ({old}) could not be deleted: {error}. Both are there and would both run; "
            f"when the server answers: whence schedule delete {old}"
        )
    kind = Unanswered if isinstance(error, Unanswered) else type(error)
    return kind(f"schedule {name}: was not replaced, the old one ({old}) is still there: {error}")


def _pipeline_of(entry: api.V2beta1RecurringRun) -> str | None:
    reference = entry.pipeline_version_reference
    return reference.pipeline_id if reference is not None else None
