"""The command ``whence``: settings, the stages on plain folders, and, where ``pipelines`` is installed, the pipeline.

Stages import torch, so every command imports what it runs when it runs: ``whence --help`` answers at once.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

import whence
from whence.cli.ask import ask
from whence.cli.champion import champion_app
from whence.cli.evaluate import evaluate
from whence.cli.push import push
from whence.cli.serve import serve
from whence.cli.settings import config_app
from whence.cli.stages import add_commands
from whence.environment import strip_secrets
from whence.errors import WhenceError, message_of, put_away

# Not a dependency of the package: it declares torchvision, which it never imports and which breaks a CPU torch.
KRONFLUENCE_MISSING = (
    "kronfluence is not installed; all it needs is here already, so install it alone:\n"
    "  pip install --no-deps kronfluence==1.0.1"
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"whence {whence.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@functools.cache
def build_app() -> typer.Typer:
    """All commands that this installation has."""
    app = typer.Typer(
        name="whence",
        help="Which training examples made the model say that? Fine-tune, fit influence factors, score and compare.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    if importlib.util.find_spec("whence.pipelines") is not None:  # images hold the library alone
        from whence.cli.pipelines import register

        register(app)
    app.command()(ask)
    app.command()(serve)
    app.command()(push)
    app.command()(evaluate)
    app.add_typer(config_app, name="config")
    app.add_typer(champion_app, name="champion")
    add_commands(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors end with a line and exit code 1, wrong usage with 2; no stack trace, no secret."""
    strip_secrets()
    try:
        build_app()(args=list(sys.argv[1:] if arguments is None else arguments))
    except WhenceError as error:
        _fail(message_of(error))
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "kronfluence":
            _fail(KRONFLUENCE_MISSING)
        _fail(f"{message_of(error)}; {put_away(error)}")


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)
