"""``whence ask``: a question to the last run, its answer, and the training examples behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, overrides_of_a_run, registry_settings
from whence.environment import environment
from whence.errors import ConfigError

if TYPE_CHECKING:
    from whence.asking import Answer, Explanation
    from whence.validation.evidence import Grade

LAST_RUN = Path("whence-output/latest")
RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder of a finished run.")]
EXCERPT = 70  # characters
TITLES = {"helpful": "Behind the answer", "harmful": "Against the answer"}


@environment({"TQDM_DISABLE": "1"})  # bars of a second's work
def ask(
    question: Annotated[str, typer.Argument(help="The prompt, as the model is to read it.")],
    run: RunOption = LAST_RUN,
    answer: Annotated[str | None, typer.Option(help="Explain this answer in place of the model's own.")] = None,
    about: Annotated[str | None, typer.Option(help="Explain only these words of the answer.")] = None,
    as_input: Annotated[bool, typer.Option("--input", help="The question is a text for dataset.template.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Training examples to list at each end.")] = 5,
    champion: Annotated[bool, typer.Option("--champion", help="Ask the champion of the registry.")] = False,
    version: Annotated[int | None, typer.Option(min=1, help="Ask this version of the registered model.")] = None,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Where the files of versions are kept.")] = Path(
        ".whence/versions"
    ),
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the exact rows, and nothing else, as JSON.")] = False,
) -> None:
    """Ask a finished run, or a registered model, something new, and see the training examples behind the answer."""
    console = Console(stderr=as_json)
    with console.status("loading the run"):
        from whence.asking import Asking
        from whence.run_folder import load_run
        from whence.serving.source import Champion, fetch_version

        if champion or version is not None:
            if champion and version is not None:
                raise ConfigError("give --champion or --version, not both")
            config = registry_settings(profile, config_file, set_)
            number = Champion(config, cache).newest() if version is None else str(version)
            folder = fetch_version(config, number, cache)
        else:
            folder = load_run(run, overrides_of_a_run(profile, config_file, set_))
        asking = Asking(folder)
        grade = folder.grade
    with console.status("answering"):
        said = asking.answer(question, answer, as_input)
        said = asking.about(said, about) if about else said
    if not as_json:
        _print_answer(console, said)
    with console.status("looking for the training examples behind it"):
        found = asking.first(said)
    if not as_json:
        console.print(_table(found, rows), "[dim]Estimates by the index; exact scores follow.[/]\n")
    with console.status("scoring them exactly"):
        *_, found = asking.exact(found)
    if as_json:
        typer.echo(json.dumps(_plain(found, rows, grade), indent=1, ensure_ascii=False))
        return
    console.print(_table(found, rows))
    _print_trust(console, found, grade)


def _print_answer(console: Console, said: Answer) -> None:
    lines = {"Asked": said.prompt, "Answer" if said.own else "Given answer": said.text or "(nothing)"}
    for title, text in lines.items():
        console.print(f"[dim]{title:<13}[/]{escape(text)}", highlight=False, soft_wrap=True)
    console.print()


def _table(found: Explanation, rows: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("score" if found.detail else "estimate", "z-score", "BM25 rank"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("example", no_wrap=True)
    table.add_column()
    for direction, title in TITLES.items():
        table.add_row("", "", "", "", f"[bold]{title}[/]")
        for row in found.best(direction, rows).itertuples():
            table.add_row(f"{row.score:.4g}", f"{row.z_score:+.1f}", str(row.bm25_rank), *_shown(row))
    table.add_row("", "", "", "", "[bold]Most words shared[/]")
    for row in found.by_words.head(rows).itertuples():
        table.add_row("", "", str(row.rank), *_shown(row))
    return table


def _shown(row: Any) -> tuple[str, str]:
    """An example's id and its text, the beginning and the end where it is long."""
    line = " ".join(f"{row.prompt} {row.completion}".split())
    short = line if len(line) <= EXCERPT else f"{line[: EXCERPT // 2]} … {line[-EXCERPT // 2 :]}"
    return escape(row.example_id), escape(short)


def _print_trust(console: Console, found: Explanation, grade: Grade | None) -> None:
    console.print()
    console.print(escape(found.in_words), highlight=False, soft_wrap=True)
    if grade is not None:
        console.print(f"[bold]Evidence of the run: {grade.word}.[/] {escape(grade.sentence)}", highlight=False)


def _plain(found: Explanation, rows: int, grade: Grade | None) -> dict[str, Any]:
    """Everything in plain types."""
    listed = {direction: found.best(direction, rows).to_dict("records") for direction in TITLES}
    return {
        "question": found.answer.prompt,
        "answer": found.answer.text,
        "own_answer": found.answer.own,
        **listed,
        "most_words_shared": found.by_words.head(rows).to_dict("records"),
        "stands_out": found.stands_out,
        "in_words": found.in_words,
        "evidence": None if grade is None else {"grade": grade.word, "sentence": grade.sentence},
    }
