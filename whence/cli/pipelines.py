"""The commands of ``whence`` that need the pipelines beside the library: ``run``, ``compile``, those of a cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from whence.cli import cluster as cluster_commands
from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings
from whence.components.images import REGISTRY_VARIABLE, TAG_VARIABLE
from whence.config import Config
from whence.config_file import inline_prompts, parse_config
from whence.pipelines.graphs.catalog import KindOption, PipelineKind, stages_of
from whence.pipelines.local.artifact_root import ArtifactRoot
from whence.pipelines.local.warm import warm_processes


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(run)
    app.command("compile")(compile_)
    cluster_commands.register(app)


def run(
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    pipeline: KindOption = None,
    artifact_root: Annotated[
        str, typer.Option(metavar="DIR", help="Receives a folder per run with its artifacts and log; may be s3://.")
    ] = ArtifactRoot.LOCAL,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print everything the stages print.")] = False,
) -> None:
    """Run a whole pipeline on this machine; the built-in demo when no settings are named."""
    if importlib.util.find_spec("kronfluence") is None:  # said now, not when the model is trained
        raise ModuleNotFoundError(name="kronfluence")
    kind = pipeline or PipelineKind.ATTRIBUTION
    config = _without_password(inline_prompts(find_settings(profile, config_file, set_).load()))
    console = Console(file=sys.stdout)  # this stdout, also while a run redirects it to its log
    try:
        with warm_processes():
            _run(kind, config, ArtifactRoot.parse(artifact_root), console, verbose)
    except KeyboardInterrupt:
        console.print("Interrupted. " + _how_to_go_on(config))
        raise typer.Exit(128 + signal.SIGINT) from None


def _without_password(config: Config) -> Config:
    """Settings that can be written beside every artifact; the processes of the stages inherit what MLflow needs."""
    from whence.running.checks import PASSWORD
    from whence.tracking.address import Address

    if not PASSWORD.search(config.tracking.uri):
        return config
    address = Address.parse(config.tracking.uri)  # user and password become variables
    return parse_config(config.to_yaml(), {"tracking.uri": address.uri})


def _run(kind: PipelineKind, config: Config, root: ArtifactRoot, console: Console, verbose: bool) -> None:
    with console.status("checking the settings") as status:
        from whence.stages.prepare import check

        check(config, lambda subject: status.update(f"checking the settings: {subject}"))
        root.check()
        from whence.pipelines.local.run import RunFailed, run_locally
        from whence.pipelines.local.summary import print_result, report_of
        from whence.tracking import settle_run

        graph = kind.build(config)
    try:
        result = run_locally(graph, stages_of(graph), root.folder, console, verbose, partial(settle_run, config))
    except RunFailed as failure:
        place = report_of(failure.run)
        message = f"{failure}\nThe report of everything else: {place}" if place else str(failure)
        raise RunFailed(f"{message}{root.keep_failed(failure.run.folder)}", failure.run) from failure
    print_result(console, result, config)
    root.keep(result.folder, console)


def compile_(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Receives the pipeline as YAML.")],
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    pipeline: KindOption = None,
    image_registry: Annotated[
        str | None, typer.Option(envvar=REGISTRY_VARIABLE, help="Registry and folder of the stages' images.")
    ] = None,
    image_tag: Annotated[
        str | None, typer.Option(envvar=TAG_VARIABLE, help="Tag of the images; never a moving one.")
    ] = None,
) -> None:
    """Compile a pipeline for Kubeflow; its form shows the values of the settings."""
    # Read by the components, which are imported next.
    variables = {REGISTRY_VARIABLE: image_registry, TAG_VARIABLE: image_tag}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    from whence.pipelines.graphs.compile import compile_pipeline, local_record_note

    settings, kind = find_settings(profile, config_file, set_), pipeline or PipelineKind.ATTRIBUTION
    config = compile_pipeline(settings.file, output, settings.overrides, kind)
    typer.echo(f"{output}: {kind} pipeline of {settings.file}")
    note = local_record_note(config)
    if note:
        typer.echo(note, err=True)


def _how_to_go_on(config: Config) -> str:
    if config.general.work_dir is None:
        return "Nothing is kept: set general.work_dir to have finished work reused."
    return "The same command goes on from what is finished."
