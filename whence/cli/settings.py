"""Which settings a command works with, and the commands that show and check them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import whence
from whence.config import Config
from whence.config_file import dotted_keys, get_dotted, inline_prompts, load_config, parse_override
from whence.environment import settings_of_the_network
from whence.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from whence.running.cluster_checks import Outcome

DEFAULT_PROFILE = "demo"

# Where settings come from: a profile by name, or a file, and single values that win over it.
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Profile by name, from configs/.")]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Settings file (YAML) or its s3:// address, in place of a profile."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting by dotted key; repeatable.")
]


class Settings(NamedTuple):
    """A settings file, here or at ``s3://``, and the values given on the command line."""

    file: str | Path
    overrides: dict[str, Any]

    def load(self) -> Config:
        return load_config(self.file, self.overrides)


def find_settings(profile: str | None, config_file: str | Path | None, values: Sequence[str] | None) -> Settings:
    """The settings that ``--profile``, ``--config`` and ``--set`` name; the demo's when neither of the first is given.

    Raises:
        ConfigError: both are given, the profile does not exist, or a value is not of the form key=value.
    """
    if profile is not None and config_file is not None:
        raise ConfigError("give --profile or --config, not both")
    file = config_file if config_file is not None else find_profile(profile or DEFAULT_PROFILE)
    return Settings(file, read_overrides(values))


def read_overrides(values: Sequence[str] | None) -> dict[str, Any]:
    """The settings by dotted key that ``--set`` gives.

    Raises:
        ConfigError: a value is not of the form key=value, or a key is given twice.
    """
    overrides: dict[str, Any] = {}
    for text in values or ():
        key, value = parse_override(text)
        if key in overrides:
            raise ConfigError(f"--set {key}: is given twice", hint="keep one of them")
        overrides[key] = value
    return overrides


def registry_settings(profile: str | None, config_file: str | Path | None, values: Sequence[str] | None) -> Config:
    """The settings of what needs little more of them than where MLflow is: the default ones where none are named."""
    if profile is not None or config_file is not None:
        return find_settings(profile, config_file, values).load()
    from whence.models.trained import own_config

    return own_config(read_overrides(values))


def overrides_of_a_run(
    profile: str | None, config_file: str | Path | None, values: Sequence[str] | None
) -> dict[str, Any]:
    """What ``--set`` gives of a run that has its own settings.

    Raises:
        ConfigError: other settings are named, too.
    """
    if profile is not None or config_file is not None:
        raise ConfigError(
            "--profile and --config are for a model of the registry; a run on this machine has its own settings",
            hint="give single ones that win over them with --set, or ask for --champion",
        )
    return read_overrides(values)


def find_profile(name: str) -> Path:
    """The file of a profile: ``configs/<name>.yaml`` here, or in the source tree this library is installed from."""
    roots = (Path.cwd(), Path(whence.__file__).resolve().parent.parent)
    folders = list(dict.fromkeys(root / "configs" for root in roots))
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise ConfigError(
        f"--profile {name}: there is no {name}.yaml in {' or '.join(str(folder) for folder in folders)}; profiles "
        f"here: {', '.join(known) or 'none'}",
        hint="give a file of your own with --config",
    )


config_app = typer.Typer(help="Show and check settings.", no_args_is_help=True, rich_markup_mode="rich")


@config_app.command("show")
def config_show(
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="A table of keys, values and their meaning.")] = False,
) -> None:
    """Print the settings with every value explicit."""
    config = find_settings(profile, config_file, set_).load()
    if not explain:
        typer.echo(config.to_yaml(), nl=False)
        return
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    for key, text in dotted_keys().items():
        table.add_row(key, escape(str(get_dotted(config, key))), escape(text))
    Console().print(table)


@config_app.command("check")
def config_check(
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also what `whence cluster check` tries, as far as it is seen from here.")
    ] = False,
    show_example: Annotated[
        bool, typer.Option("--show-example", help="Print the first training example with the tokens whose loss counts.")
    ] = False,
) -> None:
    """Check the settings and what they name - prompts, questions, model, tracking server - without training."""
    settings = find_settings(profile, config_file, set_)
    config = settings.load()
    if network := settings_of_the_network():
        typer.echo(f"network: {network}", err=True)
    if cluster:
        from whence.running.cluster_checks import Place, look

        print_outcomes({outcome: ["here"] for outcome in look(Place(config))})
    from whence.running.checks import check_portable
    from whence.stages.prepare import check

    check(config, lambda subject: typer.echo(f"checking {subject}", err=True))
    try:
        check_portable(inline_prompts(config))
    except ConfigError as error:
        typer.echo(f"note: good for this machine alone: {error}", err=True)
    if show_example:
        print_example(config)
    typer.echo(f"{settings.file}: nothing wrong found")


def print_example(config: Config) -> None:
    """The first training example; what counts is green in a terminal, and in brackets everywhere."""
    from whence.running.checks import first_example

    shown = Text()
    for counted, pieces in groupby(first_example(config), key=lambda piece: piece[1]):
        text = "".join(text for text, _ in pieces)
        shown.append(f"[{text}]" if counted else text, style="bold green" if counted else "")
    Console(soft_wrap=True).print(shown)
    typer.echo("In brackets: the tokens whose loss counts (dataset.loss_on).", err=True)


def print_outcomes(found: Mapping[Outcome, Sequence[str]]) -> None:
    """A row for every outcome of the checks, with where it was found.

    Raises:
        ClusterError: one has failed.
    """
    from whence.running.cluster_checks import CHECKS

    order, everywhere = list(CHECKS), {place: None for places in found.values() for place in places}
    table = Table("check", "", "where", "what", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for outcome, places in sorted(found.items(), key=lambda item: order.index(item[0].check)):
        state = "[green]ok[/]" if outcome.passed else "[bold red]FAILED[/]"
        rest = [place for place in everywhere if place not in places]
        where = ", ".join(places)
        if len(rest) < len(places) > 1:
            where = f"all but {', '.join(rest)}" if rest else "all tasks"
        table.add_row(outcome.check, state, escape(where), escape(outcome.found))
    Console().print(table)
    if failed := list(dict.fromkeys(outcome.check for outcome in found if not outcome.passed)):
        raise ClusterError(f"{', '.join(failed)} failed", hint="the table says where, and the way out")
