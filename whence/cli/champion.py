"""``whence champion``: which version is it, and going back to the one before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings

if TYPE_CHECKING:
    from whence.tracking.registry import Registry

champion_app = typer.Typer(
    help="The champion: the version of the registered model that retraining has to beat.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@champion_app.command()
def show(profile: ProfileOption = None, config_file: ConfigOption = None, set_: SetOption = None) -> None:
    """Show the champion and the one before it."""
    registry = _registry(profile, config_file, set_)
    aliases = registry.aliases()
    if aliases.champion is None:
        typer.echo(f"{registry.name} has no champion yet")
    for alias, number in (("champion", aliases.champion), ("previous", aliases.previous)):
        if number is not None:
            version = registry.version(number)
            registered = datetime.fromtimestamp(version.created / 1000, UTC)
            typer.echo(f"{alias}: version {number} of {registry.name}, registered {registered:%Y-%m-%d %H:%M} UTC")
            typer.echo(f"  {version.source}")


@champion_app.command()
def rollback(profile: ProfileOption = None, config_file: ConfigOption = None, set_: SetOption = None) -> None:
    """Make the previous champion the champion again; no scheduled run promotes the present one again."""
    registry = _registry(profile, config_file, set_)
    before = registry.roll_back()
    typer.echo(f"champion: version {before.previous} of {registry.name}, in place of version {before.champion}")


@champion_app.command("set")
def set_champion(
    version: Annotated[int, typer.Argument(min=1, help="Version number of the registered model.")],
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Make any version the champion by hand, whatever the gate has said of it."""
    registry = _registry(profile, config_file, set_)
    before = registry.set_champion(str(version))
    if before.champion == str(version):
        typer.echo(f"champion: version {version} of {registry.name}, as before")
    else:
        instead = f"in place of version {before.champion}" if before.champion else "the first"
        typer.echo(f"champion: version {version} of {registry.name}, {instead}")


def _registry(profile: str | None, config_file: str | None, values: list[str] | None) -> Registry:
    config = find_settings(profile, config_file, values).load()
    from whence.tracking.registry import Registry

    return Registry(config)
