"""One command per stage, on plain folders: what an image's entry point runs, and the way to do a stage by hand.

The commands are derived from the stages' declarations: an option per input, argument and output.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings, read_overrides
from whence.config import ALL_MEASURES
from whence.running.declaration import TASK, Artifact, Stage
from whence.stages import stages

PANEL = "One stage at a time, on plain folders"

FullOption = Annotated[
    bool, typer.Option("--full", help="Measure everything, also what trains the model again many times.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the command of every stage."""
    for stage in stages().values():
        app.command(stage.title, help=stage.help, rich_help_panel=PANEL)(_command(stage))


def _command(stage: Stage) -> Callable[..., None]:
    """The function behind the command of a stage, with the signature that typer reads its options from."""
    options = {artifact.name: _input(artifact) for artifact in stage.inputs}
    options |= {artifact.name: _output(artifact) for artifact in stage.outputs}
    if stage.resolve is None:
        parameters = [parameter for parameter in stage.parameters if parameter.default is not None]
        options |= {
            one.name: (Annotated[one.type, typer.Option(help=one.help, show_default=False)], one.default)
            for one in parameters
        }
        options["set_"] = (SetOption, None)
        if stage.name == "validate":
            options["full"] = (FullOption, False)
    else:
        options |= {"profile": (ProfileOption, None), "config_file": (ConfigOption, None), "set_": (SetOption, None)}

    def command(**values: Any) -> None:
        _run(stage, values)

    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in options.items()
        ]
    )
    command.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    return command


def _input(artifact: Artifact) -> tuple[Any, Any]:
    option = typer.Option(
        help=artifact.help, exists=True, file_okay=artifact.is_page, dir_okay=not artifact.is_page, metavar="DIR"
    )
    if artifact.many:
        return Annotated[list[Path] | None, option], None
    return (Annotated[Path | None, option], None) if artifact.optional else (Annotated[Path, option], Parameter.empty)


def _output(artifact: Artifact) -> tuple[Any, Any]:
    option = typer.Option(help=f"Receives: {artifact.help}", metavar="FILE" if artifact.is_page else "DIR")
    return Annotated[Path, option], Parameter.empty


def _run(stage: Stage, values: dict[str, Any]) -> None:
    from whence.running.runner import run_stage

    parameters = {one.name: values[one.name] for one in stage.parameters if one.name in values}
    overrides: dict[str, Any] = {}
    if stage.resolve is not None:
        from whence.config_file import inline_prompts, pack

        settings = find_settings(values["profile"], values["config_file"], values["set_"])
        parameters["settings"] = pack(inline_prompts(settings.load()))
    else:
        overrides = read_overrides(values["set_"])
        if values.get("full"):
            overrides["validation.measures"] = list(ALL_MEASURES)
    result = run_stage(
        stage,
        inputs={artifact.name: values[artifact.name] or None for artifact in stage.inputs},
        outputs={artifact.name: values[artifact.name] for artifact in stage.outputs},
        parameters=parameters,
        overrides=overrides,
    )
    if stage.name == "validate" and parameters[TASK.name] < 0:
        _print_evidence(values["evidence"])
        return
    for name, value in (result.metrics | result.returns).items():
        typer.echo(f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}")


def _print_evidence(folder: Path) -> None:
    from rich.console import Console

    from whence.pipelines.local.summary import print_evidence
    from whence.running.artifacts import EVIDENCE_FILE
    from whence.validation.evidence import Evidence

    print_evidence(Console(), Evidence.read(folder / EVIDENCE_FILE))
