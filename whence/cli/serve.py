"""``whence serve``: a page and an HTTP interface that answer questions and show the training examples behind them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from whence.cli.ask import LAST_RUN, RunOption
from whence.cli.settings import ConfigOption, ProfileOption, SetOption, overrides_of_a_run, registry_settings


def serve(
    run: RunOption = LAST_RUN,
    champion: Annotated[
        bool, typer.Option("--champion", help="Answer with the champion of the registry, and follow it when it moves.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8750,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Where a champion's files are kept.")] = Path(
        ".whence/champion"
    ),
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Serve a page where a model is asked, and shows the training examples behind each answer."""
    import uvicorn

    import whence.progress  # noqa: F401  (before transformers, whose bars it turns off in a log)
    from whence.serving.app import create_app
    from whence.serving.source import Champion, Keeper, LocalRun

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("whence").setLevel(logging.INFO)
    if champion:
        config = registry_settings(profile, config_file, set_)
        keeper = Keeper(Champion(config, cache))
        keeper.follow(config.serving.follow_seconds)
    else:
        local = LocalRun(run, overrides_of_a_run(profile, config_file, set_))
        config, keeper = local.run.config, Keeper(local)
        keeper.refresh()
        typer.echo(f"Ask at http://{host}:{port}/ (Ctrl-C ends it)")
    app = create_app(lambda: keeper.service, config.serving)
    uvicorn.run(app, host=host, port=port, log_level="warning")
