"""``whence schedule``: run a pipeline again and again, and look after the schedules there are."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.markup import escape
from rich.table import Table

from whence.cli.cluster_options import (
    ExperimentOption,
    Kubeflow,
    ParamOption,
    ServiceAccountOption,
    Source,
    grouped,
    print_table,
)
from whence.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from whence.pipelines.cluster.client import Client

schedule_app = typer.Typer(rich_markup_mode="rich")

ScheduleArgument = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="Name or id; `whence schedule list` has both.")
]
TimeZoneOption = Annotated[
    str,
    typer.Option(
        metavar="ZONE",
        help="The zone the cluster's schedules are in, for the times printed here. It is set for the whole cluster, by "
        "CRON_SCHEDULE_TIMEZONE of Kubeflow's ml-pipeline-scheduledworkflow, and is UTC by default.",
    ),
]


ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Also while a run of the schedule goes on: cancel that run, and wait for its end."),
]


@schedule_app.callback(invoke_without_command=True)
@grouped
def schedule(
    context: typer.Context,
    source: Source,
    kubeflow: Kubeflow,
    cron: Annotated[
        str | None,
        typer.Option(
            metavar="CRON",
            help="When: minute, hour, day of month, month, day of week (Sunday is 0), e.g. '0 3 * * 1'; or six fields, "
            "with the seconds first.",
        ),
    ] = None,
    param: ParamOption = None,
    experiment: ExperimentOption = "Default",
    name: Annotated[str | None, typer.Option(help="Name of the schedule; else the pipeline's.")] = None,
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Runs of it at the same time.")] = 1,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Also run the times that passed while it was paused or the cluster down.")
    ] = False,
    service_account: ServiceAccountOption = None,
    time_zone: TimeZoneOption = "UTC",
    force: ForceOption = False,
) -> None:
    """Run the pipeline of a profile on a schedule; one of the same name and pipeline is replaced.

    The schedule keeps the version of the pipeline it was made with: give the same command again after a change.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    if cron is None:
        raise ConfigError("--cron: when shall it run? e.g. --cron '0 3 * * 1' for Mondays at three")
    from whence.pipelines.cluster.cron import six_fields

    zone, fields = _zone(time_zone), six_fields(cron)
    from whence.pipelines.cluster import runs, schedules

    with source.package() as package:
        arguments = package.arguments(param or ())
        client = kubeflow.connect()
        version = runs.upload(client, package)
    name = name or package.name
    created = schedules.create_or_replace(
        client,
        version,
        name,
        experiment=runs.experiment_id(client, experiment),
        force=force,
        cron_expression=fields,
        max_concurrency=str(max_concurrency),  # an int64 in JSON
        no_catchup=not catch_up,
        params=arguments,
        service_account=service_account,
    )
    typer.echo(f"schedule {name}: {'replaced' if created.replaced else 'created'} ({created.schedule_id})")
    typer.echo(f"pipeline {package.name}: version {package.version}")
    typer.echo(client.link(f"recurringrun/details/{created.schedule_id}"))
    _print_times(fields, zone, max_concurrency, catch_up)
    if created.paused:
        typer.echo(f"It is paused, as the one before was: whence schedule resume {name}")


@schedule_app.command("list")
@grouped
def list_(kubeflow: Kubeflow, time_zone: TimeZoneOption = "UTC") -> None:
    """List the schedules with their next time."""
    zone = _zone(time_zone)
    from whence.pipelines.cluster import schedules

    found = schedules.list_all(kubeflow.connect())
    if not found:
        typer.echo("No schedules yet.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("schedule", "state", "cron (seconds first)", f"next ({zone.key})", "at once", "id"):
        table.add_column(column, no_wrap=True)
    for entry in found:
        trigger = entry.trigger and entry.trigger.cron_schedule
        cron = trigger.cron if trigger else ""
        paused = entry.status == schedules.DISABLED
        state = "paused" if paused else str(entry.status or "").lower()
        following = "" if paused else _next_time(cron, zone)
        row = (entry.display_name, state, cron, following, str(entry.max_concurrency), entry.recurring_run_id)
        table.add_row(*(escape(text or "") for text in row))
    print_table(table)


@schedule_app.command()
@grouped
def pause(schedule: ScheduleArgument, kubeflow: Kubeflow) -> None:
    """Start no more runs until it is resumed; one that is running goes on."""
    _change(kubeflow.connect(), schedule, paused=True)


@schedule_app.command()
@grouped
def resume(schedule: ScheduleArgument, kubeflow: Kubeflow) -> None:
    """Start runs again."""
    _change(kubeflow.connect(), schedule, paused=False)


@schedule_app.command()
@grouped
def delete(schedule: ScheduleArgument, kubeflow: Kubeflow, force: ForceOption = False) -> None:
    """Delete it; its runs that have ended stay. While one goes on, only with --force, which cancels that run first."""
    from whence.pipelines.cluster import schedules

    client = kubeflow.connect()
    entry = _only(client, schedule)
    for run_id in schedules.delete(client, entry, force=force):
        typer.echo(f"run {run_id}: was going on and has been cancelled")
    typer.echo(f"schedule {entry.display_name}: deleted ({entry.recurring_run_id})")


def _change(client: Client, schedule: str, *, paused: bool) -> None:
    from whence.pipelines.cluster import schedules

    entry = _only(client, schedule)
    schedules.set_paused(client, entry.recurring_run_id, paused)
    typer.echo(f"schedule {entry.display_name}: {'paused' if paused else 'resumed'} ({entry.recurring_run_id})")


def _only(client: Client, schedule: str) -> Any:
    from whence.pipelines.cluster import schedules

    found = schedules.find(client, schedule)
    if not found:
        raise PipelineError(f"schedule {schedule}: there is none", hint="`whence schedule list` shows those there are")
    if len(found) > 1:
        ids = ", ".join(entry.recurring_run_id for entry in found)
        raise PipelineError(
            f"schedule {schedule}: there are {len(found)} of that name", hint=f"give the id of one: {ids}"
        )
    return found[0]


def _print_times(cron: str, zone: ZoneInfo, max_concurrency: int, catch_up: bool) -> None:
    from whence.pipelines.cluster.cron import next_times

    runs = "one run at a time" if max_concurrency == 1 else f"up to {max_concurrency} runs at a time"
    missed = "missed times are caught up" if catch_up else "missed times are not caught up"
    typer.echo(f"cron {cron} (seconds first), {runs}, {missed}")
    typer.echo(
        f"Next, if the cluster's schedules are in {zone.key} (UTC unless CRON_SCHEDULE_TIMEZONE of its "
        "ml-pipeline-scheduledworkflow says otherwise):"
    )
    for moment in next_times(cron, datetime.now(zone)):
        typer.echo(f"  {moment:%a %Y-%m-%d %H:%M:%S %Z}")


def _next_time(cron: str, zone: ZoneInfo) -> str:
    """The next time of a schedule there is; empty for those (``@every``, intervals) that only the cluster can tell."""
    from cronsim import CronSimError

    from whence.pipelines.cluster.cron import next_times

    try:
        return f"{next_times(cron, datetime.now(zone), 1)[0]:%Y-%m-%d %H:%M}"
    except (CronSimError, ValueError, IndexError):
        return ""


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"--time-zone {name}: is no time zone", hint="give a name such as UTC or Europe/Berlin"
        ) from error


def _refuse_options_before(context: typer.Context) -> None:
    """``whence schedule --host X list`` would pass over the host in silence."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} belongs after `{context.invoked_subcommand}`")
