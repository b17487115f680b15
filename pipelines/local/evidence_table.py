"""How evidence looks in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence.validation.evidence import METHOD_NAMES, METHODS, Evidence
from whence.validation.summary import wide_rows


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
