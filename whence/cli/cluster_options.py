"""What the cluster commands share: how they find Kubeflow, and the pipeline they are about."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from whence.cli.settings import find_settings
from whence.errors import ConfigError
from whence.pipelines.graphs.catalog import PipelineKind

if TYPE_CHECKING:
    from whence.pipelines.cluster.connection import Connection
    from whence.pipelines.cluster.package import Package

PANEL = "On a cluster"
CONNECTION = "Kubeflow Pipelines"
WIDEST = 1000  # characters of a table's line

HostOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="KF_PIPELINES_ENDPOINT",
        rich_help_panel=CONNECTION,
        help="Address of the API; else the service of this cluster, or the kubeconfig's.",
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        rich_help_panel=CONNECTION,
        help="Namespace of your profile, where Kubeflow has several users.",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_TOKEN",
        rich_help_panel=CONNECTION,
        help="Bearer token; better in the variable than on the command line, where others see it. Else by kfp's ways: "
        "the file in KF_PIPELINES_SA_TOKEN_PATH, IAP, cookies in ~/.config/kfp/context.json.",
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=CONNECTION, help="Context of the kubeconfig, without a --host."),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, metavar="YAML", help="A compiled pipeline, in place of a profile or settings."
    ),
]
PipelineNameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its name in Kubeflow; else the pipeline's, e.g. whence-demo.")
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="One field of the pipeline's form; repeatable."),
]
ExperimentOption = Annotated[
    str,
    typer.Option(
        envvar="KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", help="Kubeflow experiment of the runs; created if missing."
    ),
]
ServiceAccountOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Kubernetes service account of the runs; else the cluster's own.")
]


def connect(host: str | None, namespace: str | None, token: str | None, kube_context: str | None) -> Connection:
    """Connect; kfp is imported only now, which takes seconds."""
    from whence.pipelines.cluster.connection import Connection, Place

    return Connection(Place(host, namespace, token, kube_context))


def print_table(table: Table) -> None:
    """Print a table as wide as it is: an id that is cut to the width of the terminal, or of a pipe, is of no use."""
    console = Console()
    wide = console.options.update(max_width=WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


@contextmanager
def packaged(
    profile: str | None,
    config: str | None,
    values: list[str] | None,
    kind: PipelineKind | None,
    file: Path | None,
    name: str | None,
) -> Iterator[Package]:
    """The compiled pipeline that the options name: the file, or the settings compiled now."""
    from whence.pipelines.cluster.package import Package

    if file is not None:
        if profile is not None or config is not None or values or kind is not None:
            raise ConfigError(
                f"--file {file}: is compiled already; give it without --pipeline, --profile, --config and --set"
            )
        yield Package.read(file, name)
        return
    from whence.pipelines.graphs.compile import compile_pipeline, local_record_note

    settings, chosen = find_settings(profile, config, values), kind or PipelineKind.ATTRIBUTION
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "pipeline.yaml"
        note = local_record_note(compile_pipeline(settings.file, compiled, settings.overrides, chosen))
        if note:
            typer.echo(note, err=True)
        yield Package.read(compiled, name)
