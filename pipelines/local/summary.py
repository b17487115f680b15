"""What ``whence run`` says at the end: the stages, the measures, one answer with its examples, where the rest is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from whence.config import Config
from whence.models import CARD_FILES
from whence.pipelines.local.board import format_number
from whence.pipelines.local.run import LocalRun
from whence.running.artifacts import ANSWERS_FILE, CARD_FOLDER, COMPARISON_FILE, EVIDENCE_FILE
from whence.tracking.address import Address
from whence.validation.evidence import METHOD_NAMES, METHODS, Evidence
from whence.validation.summary import wide_rows

PAGES = {
    "The report": "report/report",
    "Spectra of the factors": "inspect/spectra_page",
    "Loss curve": "train/loss_curve",
}
DECIDING = ("find-champion/changes", "gate/verdict", "promote/promotion")  # what retraining says in words
TITLES = {"base": "Base model", "finetuned": "Fine-tuned"}
ROLES = ("base", "finetuned", "difference")
EXAMPLES_SHOWN = 3
EXCERPT = 90  # characters


def print_result(console: Console, result: LocalRun, config: Config) -> None:
    """Print the end of a pipeline run, from its artifacts."""
    console.print(result.board.table())
    for page in DECIDING:
        if (result.artifacts / page).is_file():
            console.print()
            console.print(Markdown((result.artifacts / page).read_text(encoding="utf-8")))
    comparison = result.artifacts / "compare" / "comparison"
    if (comparison / COMPARISON_FILE).exists():
        compared = json.loads((comparison / COMPARISON_FILE).read_text(encoding="utf-8"))
        _print_headline(console, compared["headline"], compared["models"])
        _print_first_answer(console, pd.read_parquet(comparison / ANSWERS_FILE), compared["models"])
    evidence = result.artifacts / "validate" / "evidence" / EVIDENCE_FILE
    if evidence.exists():
        console.print()
        print_evidence(console, Evidence.read(evidence))
    _print_places(console, result, config)
    for stage in result.board.stages.values():
        for what in stage.not_recorded:
            console.print(f"[bold red]Not in MLflow:[/] {escape(f'{stage.name}: {what}')}", soft_wrap=True)


def report_of(result: LocalRun) -> str | None:
    """Where the report of a run is as a page to open; None where there is none."""
    output = PAGES["The report"]
    return _short(_as_page(result, output)) if (result.artifacts / output).is_file() else None


def print_evidence(console: Console, evidence: Evidence) -> None:
    """A row per measure, influence beside the baselines; what could not be measured; the grade with its sentence."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Evidence")
    for method in METHODS:
        table.add_column(METHOD_NAMES[method], justify="right")
    for row in wide_rows(evidence):
        table.add_row(*map(escape, row))
    if table.row_count:
        console.print(table)
    asked = evidence.settings.get("measures", [])
    for missing in evidence.not_measured:
        if missing.name in asked:
            console.print(f"{missing.name} was not measured: {escape(missing.why)}", highlight=False)
    console.print(f"[bold]Evidence: {evidence.grade.word}.[/] {escape(evidence.grade.sentence)}", highlight=False)


def _print_headline(console: Console, headline: dict[str, float], ids: dict[str, str]) -> None:
    """One row per measure of the models, their ids by role."""
    models = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("Measure", *(ids.get(role, role) for role in ROLES)):
        models.add_column(column, justify="left" if column == "Measure" else "right", style=None)
    for name in dict.fromkeys(name.partition(".")[2] for name in headline):
        values = (headline.get(f"{role}.{name}") for role in ROLES)
        models.add_row(name, *("" if value is None else format_number(value) for value in values))
    console.print()
    console.print(models)


def _print_first_answer(console: Console, table: pd.DataFrame, ids: dict[str, str]) -> None:
    """The first prompt with both answers and its most helpful training examples."""
    first = table[table["prompt_id"] == table["prompt_id"].iloc[0]]
    helpful = first[first["direction"] == "helpful"].sort_values("rank").head(EXAMPLES_SHOWN)
    asked = first.iloc[0]
    lines = [
        ("Asked", asked["prompt"]),
        *((TITLES.get(model_id, model_id), asked[f"{role}_answer"]) for role, model_id in ids.items()),
        *(("Because of", f"{row.example_prompt} {row.example_completion}") for row in helpful.itertuples()),
    ]
    console.print()
    for title, text in lines:
        console.print(f"[dim]{escape(title):<11}[/dim] {escape(_excerpt(text))}", soft_wrap=True, highlight=False)


def _excerpt(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT // 2]} … {line[-EXCERPT // 2 :]}"


def _print_places(console: Console, result: LocalRun, config: Config) -> None:
    places = {
        title: _short(_as_page(result, output))
        for title, output in PAGES.items()
        if (result.artifacts / output).is_file()
    }
    card = result.artifacts / "report" / "tables" / CARD_FOLDER / CARD_FILES[0]
    places |= {"The model card": _short(card)} if card.is_file() else {}
    places |= {
        "All artifacts": _short(result.artifacts),
        "The log": _short(result.log),
        "MLflow": _where_mlflow_is(config.tracking.uri),
        "Pipeline run": result.run_id,
    }
    width = max(map(len, places))
    console.print()
    for title, place in places.items():  # no table: a path that is cut or folded cannot be opened
        console.print(f"{title:<{width}}  {escape(place)}", soft_wrap=True, highlight=False)


def _as_page(result: LocalRun, output: str) -> Path:
    """kfp names artifacts without a suffix, which browsers need (also at a link's end) to see a page in a file."""
    page = result.folder / f"{Path(output).name.removesuffix('_page')}.html"
    shutil.copyfile(result.artifacts / output, page)
    return page


def _where_mlflow_is(uri: str) -> str:
    address = Address.parse(uri).uri  # without user name and password
    return f"mlflow ui --backend-store-uri {address}" if address.startswith("sqlite:") else address


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
