"""The commands of ``whence`` that work on a cluster: ``pipelines upload``, ``submit``, ``status`` and ``schedule``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence.cli.cluster_options import (
    PANEL,
    ContextOption,
    ExperimentOption,
    FileOption,
    HostOption,
    NamespaceOption,
    ParamOption,
    PipelineNameOption,
    ServiceAccountOption,
    TokenOption,
    connect,
    packaged,
    print_table,
)
from whence.cli.schedules import schedule_app
from whence.cli.settings import ConfigOption, ProfileOption, SetOption
from whence.errors import PipelineError, WhenceError
from whence.pipelines.graphs.catalog import KindOption

if TYPE_CHECKING:
    from whence.pipelines.cluster.connection import Connection

INTERRUPTED = 130

pipelines_app = typer.Typer(help="Pipelines in Kubeflow.", no_args_is_help=True, rich_markup_mode="rich")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel=PANEL)(submit)
    app.command(rich_help_panel=PANEL)(status)
    app.add_typer(schedule_app, name="schedule", rich_help_panel=PANEL)
    app.add_typer(pipelines_app, name="pipelines", rich_help_panel=PANEL)


@pipelines_app.command()
def upload(
    profile: ProfileOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    pipeline: KindOption = None,
    file: FileOption = None,
    pipeline_name: PipelineNameOption = None,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
    kube_context: ContextOption = None,
) -> None:
    """Upload the pipeline of a profile, as a new version if its content has changed."""
    from whence.pipelines.cluster import client as cluster

    with packaged(profile, config, set_, pipeline, file, pipeline_name) as package:
        connection = connect(host, namespace, token, kube_context)
        version = cluster.upload(connection, package)
    state = "uploaded" if version.uploaded else "unchanged, already there as"
    typer.echo(f"pipeline {package.name}: {state} version {package.version}")
    typer.echo(connection.link(f"pipelines/details/{version.pipeline_id}/version/{version.version_id}"))


def submit(
    profile: ProfileOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    pipeline: KindOption = None,
    file: FileOption = None,
    param: ParamOption = None,
    pipeline_name: PipelineNameOption = None,
    experiment: ExperimentOption = "Default",
    name: Annotated[str | None, typer.Option(help="Name of the run; else the pipeline's and the time.")] = None,
    service_account: ServiceAccountOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print every change until the run ends; exit code 1 if it fails.")
    ] = False,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
    kube_context: ContextOption = None,
) -> None:
    """Run the pipeline of a profile on a cluster; it is uploaded first if it has changed.

    --set changes a setting, and with it the pipeline; --param fills a field of the form for this run alone.
    """
    from whence.pipelines.cluster import client as cluster

    with packaged(profile, config, set_, pipeline, file, pipeline_name) as package:
        arguments = package.arguments(param or ())
        connection = connect(host, namespace, token, kube_context)
        version = cluster.upload(connection, package)
    run_id = cluster.create_run(
        connection,
        version,
        name=name or f"{package.name} {datetime.now():%Y-%m-%d %H:%M:%S}",
        experiment=cluster.experiment_id(connection, experiment),
        arguments=arguments,
        service_account=service_account,
    )
    typer.echo(f"pipeline {package.name}: version {package.version}{'' if version.uploaded else ' (unchanged)'}")
    typer.echo(f"run {run_id}")
    typer.echo(connection.link(f"runs/details/{run_id}"))
    if follow:
        _follow(connection, run_id)


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Id of a run; else the last runs are listed.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print every change until the run ends; exit code 1 if it fails.")
    ] = False,
    last: Annotated[int, typer.Option(min=1, max=100, help="How many runs are listed.")] = 10,
    experiment: Annotated[str | None, typer.Option(help="List the runs of this experiment only.")] = None,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
    kube_context: ContextOption = None,
) -> None:
    """Show a run's tasks and their states, or the last runs."""
    if follow and run is None:
        raise PipelineError("--follow: which run? Give its id; `whence status` lists the last ones")
    from whence.pipelines.cluster import client as cluster
    from whence.pipelines.cluster.progress import state_text, task_table, tasks_of

    connection = connect(host, namespace, token, kube_context)
    if run is None:
        _list_runs(connection, last, experiment)
    elif follow:
        _follow(connection, run)
    else:
        found = cluster.get_run(connection, run)
        console = Console()
        console.print(f"{escape(found.display_name or '')}  ", state_text(found.state), highlight=False, soft_wrap=True)
        console.print(connection.link(f"runs/details/{run}"), highlight=False, soft_wrap=True)
        print_table(task_table(tasks_of(found, cluster.task_names(connection, found))))


def _list_runs(connection: Connection, count: int, experiment: str | None) -> None:
    from whence.pipelines.cluster import client as cluster
    from whence.pipelines.cluster.progress import age, state_text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("run", "state", "age", "name"):
        table.add_column(column, no_wrap=column != "name")
    runs = cluster.last_runs(connection, count, experiment)
    for run in runs:
        table.add_row(run.run_id, state_text(run.state), age(run.created_at), escape(run.display_name or ""))
    if not runs:
        typer.echo("No runs yet.")
        return
    print_table(table)


def _follow(connection: Connection, run_id: str) -> None:
    """Follow to the end; whatever ends the watching early says that the run itself goes on."""
    from whence.pipelines.cluster import progress

    again = f"the run goes on; see it again with: whence status {run_id} --follow"
    try:
        progress.follow(connection, run_id, Console())
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except PipelineError:
        raise
    except WhenceError as error:
        raise type(error)(f"{error}. While that is so, {again}") from error
    typer.echo(f"run {run_id}: succeeded")
