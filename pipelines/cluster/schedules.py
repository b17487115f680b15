"""Recurring runs. Kubeflow cannot change one, so a replacement is made first and the old one deleted after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import kfp_server_api as api

from whence.errors import ClusterError, PipelineError, WhenceError
from whence.pipelines.cluster.client import Version, mark, named
from whence.pipelines.cluster.connection import Connection
from whence.pipelines.cluster.faults import Unanswered

DISABLED = "DISABLED"


@dataclass(frozen=True)
class Schedule:
    """What a schedule shall be.

    Attributes:
        name: shown in the UI; a schedule of the same name and pipeline is replaced.
        cron: six fields.
        experiment: id of the experiment its runs are in.
        arguments: of the pipeline's form.
        max_concurrency: runs at once, 1-10; a run that would be more waits.
        catch_up: whether times that passed while it was paused or the cluster down are run afterwards.
    """

    name: str
    cron: str
    experiment: str
    arguments: Mapping[str, Any]
    max_concurrency: int = 1
    catch_up: bool = False
    service_account: str | None = None


@dataclass(frozen=True)
class Placed:
    """A schedule that was made: its id, how many it took the place of, and whether it is paused as those were."""

    schedule_id: str
    replaced: int
    paused: bool


def place(cluster: Connection, version: Version, schedule: Schedule) -> Placed:
    """Create ``schedule``, in place of those of its name.

    Raises:
        PipelineError: another pipeline has a schedule of that name.
        ClusterError: the old one could not be deleted; it was kept, and the new one is not there (or the message says
            that both are).
    """
    old = find(cluster, schedule.name)
    foreign = [entry for entry in old if _pipeline_of(entry) != version.pipeline_id]
    if foreign:
        raise PipelineError(
            f"schedule {schedule.name}: another pipeline has one of that name ({foreign[0].recurring_run_id}); give "
            f"another --name, or delete it first: whence schedule delete {foreign[0].recurring_run_id}"
        )
    paused = bool(old) and all(entry.status == DISABLED for entry in old)
    new = _create(cluster, version, schedule, paused)
    for entry in old:
        try:
            delete(cluster, entry.recurring_run_id)
        except WhenceError as error:
            raise _restored(cluster, schedule.name, entry.recurring_run_id, new, error) from error
    return Placed(new, len(old), paused)


def find(cluster: Connection, name_or_id: str) -> list[api.V2beta1RecurringRun]:
    """The schedules of that name, or the one of that id; none is an empty list."""
    everything = cluster.schedules.recurring_run_service_list_recurring_runs
    found = cluster.list(everything, "recurring_runs", namespace=cluster.namespace, filter=named(name_or_id))
    return found or [entry for entry in list_all(cluster) if entry.recurring_run_id == name_or_id]


def list_all(cluster: Connection) -> list[api.V2beta1RecurringRun]:
    """All schedules of the namespace, the newest first."""
    return cluster.list(
        cluster.schedules.recurring_run_service_list_recurring_runs,
        "recurring_runs",
        namespace=cluster.namespace,
        sort_by="created_at desc",
    )


def set_paused(cluster: Connection, schedule_id: str, paused: bool) -> None:
    """Pause or resume; either may be said twice."""
    service = cluster.schedules
    change = service.recurring_run_service_disable_recurring_run
    if not paused:
        change = service.recurring_run_service_enable_recurring_run
    cluster.ask(f"schedule {schedule_id}", change, schedule_id)


def delete(cluster: Connection, schedule_id: str) -> None:
    """Delete; one that is not there (any more, after a lost answer) counts as deleted."""
    service = cluster.schedules

    def request(**options: Any) -> None:
        try:
            service.recurring_run_service_delete_recurring_run(schedule_id, **options)
        except api.ApiException as error:
            if error.status != 404:
                raise

    cluster.ask(f"schedule {schedule_id}", request)


def _create(cluster: Connection, version: Version, schedule: Schedule, paused: bool) -> str:
    own = mark()
    body = api.V2beta1RecurringRun(
        display_name=schedule.name,
        description=own,
        experiment_id=schedule.experiment,
        namespace=cluster.namespace,
        pipeline_version_reference=version.reference(),
        runtime_config=api.V2beta1RuntimeConfig(parameters=dict(schedule.arguments)),
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=schedule.cron)),
        max_concurrency=str(schedule.max_concurrency),
        no_catchup=not schedule.catch_up,
        mode=api.RecurringRunMode.DISABLE if paused else api.RecurringRunMode.ENABLE,
        service_account=schedule.service_account,
    )

    def made() -> str | None:
        found = find(cluster, schedule.name)
        return next((entry.recurring_run_id for entry in found if entry.description == own), None)

    return cluster.ask(
        f"schedule {schedule.name}",
        lambda **options: (
            cluster.schedules.recurring_run_service_create_recurring_run(recurring_run=body, **options).recurring_run_id
        ),
        done=made,
    )


def _restored(cluster: Connection, name: str, old: str, new: str, error: WhenceError) -> WhenceError:
    """Take the new schedule away again, so that one is left; the error to raise says what is there now."""
    try:
        delete(cluster, new)
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
