"""What the cluster commands share: how they find Kubeflow, and the pipeline they are about."""

from __future__ import annotations

import functools
import inspect
import tempfile
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings
from whence.errors import ConfigError
from whence.pipelines.graphs.catalog import KindOption, PipelineKind

if TYPE_CHECKING:
    from whence.pipelines.cluster.client import Client
    from whence.pipelines.cluster.package import Package
    from whence.pipelines.cluster.workflow import Workflows

PANEL = "On a cluster"
CONNECTION = "Kubeflow Pipelines"
WIDEST = 1000  # characters of a table's line

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


class Kubeflow(NamedTuple):
    """The options that say which Kubeflow a command works on."""

    host: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="KF_PIPELINES_ENDPOINT",
            rich_help_panel=CONNECTION,
            help="Address of the API; else the service of this cluster, or the kubeconfig's.",
        ),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            rich_help_panel=CONNECTION,
            help="Namespace of your profile, where Kubeflow has several users.",
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_TOKEN",
            rich_help_panel=CONNECTION,
            help="Bearer token; better in the variable than on the command line, where others see it. Else by kfp's "
            "ways: the file in KF_PIPELINES_SA_TOKEN_PATH, IAP, cookies in ~/.config/kfp/context.json.",
        ),
    ] = None
    kube_context: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=CONNECTION,
            help="Context of the kubeconfig: the way to the API without a --host, and to what pods wait for and print.",
        ),
    ] = None

    def connect(self) -> Client:
        """Connect; kfp is imported only now, which takes seconds."""
        from whence.pipelines.cluster.client import Client

        return Client(*self)

    def workflows(self, client: Client) -> Workflows:
        """The Workflow objects behind the runs that ``client`` sees."""
        from whence.pipelines.cluster.workflow import Workflows

        return Workflows(client.namespace, self.kube_context)


class Source(NamedTuple):
    """The options that say which pipeline a command is about."""

    profile: ProfileOption = None
    config_file: ConfigOption = None
    set_: SetOption = None
    pipeline: KindOption = None
    file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="YAML", help="A compiled pipeline, in place of a profile or settings."
        ),
    ] = None
    pipeline_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name in Kubeflow; else the pipeline's, e.g. whence-demo.")
    ] = None

    @contextmanager
    def package(self) -> Iterator[Package]:
        """The compiled pipeline: the file, or the settings compiled now."""
        from whence.pipelines.cluster.package import Package

        if self.file is not None:
            if any(self[:4]):
                raise ConfigError(
                    f"--file {self.file}: is compiled already",
                    hint="give it without --pipeline, --profile, --config and --set",
                )
            yield Package.read(self.file, self.pipeline_name)
            return
        from whence.pipelines.graphs.compile import compile_pipeline, local_record_note

        settings = find_settings(self.profile, self.config_file, self.set_)
        kind = self.pipeline or PipelineKind.ATTRIBUTION
        with tempfile.TemporaryDirectory() as folder:
            compiled = Path(folder) / "pipeline.yaml"
            note = local_record_note(compile_pipeline(settings.file, compiled, settings.overrides, kind))
            if note:
                typer.echo(note, err=True)
            yield Package.read(compiled, self.pipeline_name)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are :class:`Kubeflow` or :class:`Source` become the options in them."""
    hints = typing.get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if kind not in (Kubeflow, Source):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        for name, option in typing.get_type_hints(kind, include_extras=True).items():
            default = kind._field_defaults[name]
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
            )

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(*(values.pop(field) for field in kind._fields))
        command(**values)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def print_table(table: Table) -> None:
    """Print a table as wide as it is: an id that is cut to the width of the terminal, or of a pipe, is of no use."""
    console = Console()
    wide = console.options.update(max_width=WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
