"""The commands of ``whence`` that work on a cluster: ``submit``, ``status``, ``logs`` and their like."""

from __future__ import annotations

import signal
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence.cli.cluster_options import (
    PANEL,
    ExperimentOption,
    Kubeflow,
    ParamOption,
    ServiceAccountOption,
    Source,
    grouped,
    print_table,
)
from whence.cli.schedules import schedule_app
from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings, print_outcomes
from whence.errors import PipelineError, WhenceError
from whence.pipelines.graphs.catalog import KindOption, PipelineKind

if TYPE_CHECKING:
    from whence.pipelines.cluster.client import Client
    from whence.pipelines.cluster.progress import RunView

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run; `whence status` lists the last ones.")]
FollowOption = Annotated[
    bool, typer.Option("--follow", help="Print every change until the run ends; exit code 1 if it fails.")
]

cluster_app = typer.Typer(help="The cluster itself.", no_args_is_help=True, rich_markup_mode="rich")
pipelines_app = typer.Typer(help="Pipelines in Kubeflow.", no_args_is_help=True, rich_markup_mode="rich")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (submit, status, logs, cancel, retry):
        app.command(rich_help_panel=PANEL)(command)
    app.add_typer(schedule_app, name="schedule", rich_help_panel=PANEL)
    app.add_typer(cluster_app, name="cluster", rich_help_panel=PANEL)
    app.add_typer(pipelines_app, name="pipelines", rich_help_panel=PANEL)


@cluster_app.command()
@grouped
def check(
    kubeflow: Kubeflow,
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    pipeline: KindOption = None,
    experiment: ExperimentOption = "Default",
    service_account: ServiceAccountOption = None,
    minutes: Annotated[float, typer.Option(min=0, help="How long to wait for tasks that cannot start.")] = 10,
) -> None:
    """Try in two minutes what a pipeline needs: a short task in the image and place of each of its stages.

    Images, the store, MLflow, the hub, accelerators, shared memory, volumes, rights; exit code 1 if anything fails.
    """
    from whence.pipelines.cluster import runs
    from whence.pipelines.cluster.check import gather
    from whence.pipelines.cluster.package import Package
    from whence.pipelines.graphs.compile import compile_check

    settings = find_settings(profile, config_file, set_)
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "check.yaml"
        compile_check(settings.file, compiled, settings.overrides, pipeline or PipelineKind.ATTRIBUTION)
        client = kubeflow.connect()
        version = runs.upload(client, Package.read(compiled))
    run_id = runs.create_run(
        client,
        version,
        name=f"check {datetime.now():%Y-%m-%d %H:%M:%S}",
        experiment=runs.experiment_id(client, experiment),
        arguments={},
        service_account=service_account,
    )
    typer.echo(client.link(f"runs/details/{run_id}"), err=True)
    print_outcomes(gather(_view(kubeflow, client, run_id), minutes * 60))


@pipelines_app.command()
@grouped
def upload(source: Source, kubeflow: Kubeflow) -> None:
    """Upload the pipeline of a profile, as a new version if its content has changed."""
    from whence.pipelines.cluster import runs

    with source.package() as package:
        client = kubeflow.connect()
        version = runs.upload(client, package)
    state = "uploaded" if version.uploaded else "unchanged, already there as"
    typer.echo(f"pipeline {package.name}: {state} version {package.version}")
    typer.echo(client.link(f"pipelines/details/{version.pipeline_id}/version/{version.version_id}"))


@grouped
def submit(
    source: Source,
    kubeflow: Kubeflow,
    param: ParamOption = None,
    experiment: ExperimentOption = "Default",
    name: Annotated[str | None, typer.Option(help="Name of the run; else the pipeline's and the time.")] = None,
    service_account: ServiceAccountOption = None,
    follow: FollowOption = False,
) -> None:
    """Run the pipeline of a profile on a cluster; it is uploaded first if it has changed.

    --set changes a setting, and with it the pipeline; --param fills a field of the form for this run alone.
    """
    from whence.pipelines.cluster import runs

    with source.package() as package:
        arguments = package.arguments(param or ())
        client = kubeflow.connect()
        version = runs.upload(client, package)
    run_id = runs.create_run(
        client,
        version,
        name=name or f"{package.name} {datetime.now():%Y-%m-%d %H:%M:%S}",
        experiment=runs.experiment_id(client, experiment),
        arguments=arguments,
        service_account=service_account,
    )
    typer.echo(f"pipeline {package.name}: version {package.version}{'' if version.uploaded else ' (unchanged)'}")
    typer.echo(f"run {run_id}")
    typer.echo(client.link(f"runs/details/{run_id}"))
    if follow:
        _follow(_view(kubeflow, client, run_id))


@grouped
def status(
    kubeflow: Kubeflow,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Id of a run; else the last runs are listed.")
    ] = None,
    follow: FollowOption = False,
    last: Annotated[int, typer.Option(min=1, max=100, help="How many runs are listed.")] = 10,
    experiment: Annotated[str | None, typer.Option(help="List the runs of this experiment only.")] = None,
) -> None:
    """Show a run's tasks and their states, or the last runs."""
    if follow and run is None:
        raise PipelineError("--follow: which run? Give its id", hint="`whence status` lists the last ones")
    client = kubeflow.connect()
    if run is None:
        _list_runs(client, last, experiment)
    elif follow:
        _follow(_view(kubeflow, client, run))
    else:
        _show_run(_view(kubeflow, client, run))


@grouped
def logs(
    run: RunArgument,
    kubeflow: Kubeflow,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="As `whence status RUN` names it; else the one that failed.")
    ] = None,
) -> None:
    """Print what a task of a run has printed: of its pod, or archived."""
    from whence.pipelines.cluster.logs import task_log

    shown, text = task_log(_view(kubeflow, kubeflow.connect(), run), task)
    if task is None:
        typer.echo(f"task {shown.name} ({shown.state.lower()}):", err=True)
    typer.echo(text, nl=not text.endswith("\n"))


@grouped
def cancel(run: RunArgument, kubeflow: Kubeflow) -> None:
    """End a run; what its tasks have finished is kept."""
    from whence.pipelines.cluster import runs

    client = kubeflow.connect()
    runs.cancel(client, run)
    typer.echo(f"run {run}: is being cancelled; its pods end within a minute. Go on with it: whence retry {run}")


@grouped
def retry(run: RunArgument, kubeflow: Kubeflow, follow: FollowOption = False) -> None:
    """Go on with a run that failed or was cancelled, from its first task that did not succeed."""
    from whence.pipelines.cluster import runs

    client = kubeflow.connect()
    runs.retry(client, run)
    typer.echo(f"run {run}: goes on")
    typer.echo(client.link(f"runs/details/{run}"))
    if follow:
        _follow(_view(kubeflow, client, run))


def _view(kubeflow: Kubeflow, client: Client, run_id: str) -> RunView:
    from whence.pipelines.cluster.progress import RunView

    return RunView(client, run_id, kubeflow.workflows(client))


def _show_run(view: RunView) -> None:
    from whence.pipelines.cluster.progress import state_text, task_table
    from whence.pipelines.cluster.runs import state_of

    run, tasks = view.look()
    console = Console()
    console.print(f"{escape(run.display_name or '')}  ", state_text(state_of(run)), highlight=False, soft_wrap=True)
    console.print(view.client.link(f"runs/details/{view.run_id}"), highlight=False, soft_wrap=True)
    print_table(task_table(tasks))
    if note := view.note(run, tasks):
        console.print(escape(note), highlight=False, soft_wrap=True)


def _list_runs(client: Client, count: int, experiment: str | None) -> None:
    from whence.pipelines.cluster import runs
    from whence.pipelines.cluster.progress import age, state_text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("run", "state", "age", "name"):
        table.add_column(column, no_wrap=column != "name")
    last = runs.last_runs(client, count, experiment)
    for run in last:
        name = escape(run.display_name or "")
        table.add_row(run.run_id, state_text(runs.state_of(run)), age(run.created_at), name)
    if not last:
        typer.echo("No runs yet.")
        return
    print_table(table)


def _follow(view: RunView) -> None:
    """Follow to the end; whatever ends the watching early says that the run itself goes on."""
    from whence.pipelines.cluster import progress

    again = f"the run goes on; see it again with: whence status {view.run_id} --follow"
    try:
        progress.follow(view, Console())
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; {again}", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    except PipelineError:
        raise
    except WhenceError as error:
        raise type(error)(f"{error}. While that is so, {again}") from error
    typer.echo(f"run {view.run_id}: succeeded")
