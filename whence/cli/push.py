"""``whence push``: a run's model with its card to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from whence.cli.ask import LAST_RUN, RunOption


def push(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; made if missing.")],
    run: RunOption = LAST_RUN,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if missing.")] = None,
) -> None:
    """Push a run's model with its model card to the Hugging Face hub, in one commit; HF_TOKEN is the key."""
    from whence.models.publishing import push_model
    from whence.run_folder import load_run
    from whence.running.artifacts import CARD_FOLDER

    folder = load_run(run)
    card = folder.artifact("report", "tables") / CARD_FOLDER
    address = push_model(folder.artifact("train", "model"), card, repository, private=not public, revision=revision)
    typer.echo(address)
