"""The report's tables as frames, for MLflow to keep and to compare across runs."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from whence.report.answers import DIRECTIONS, entries
from whence.report.details import Details
from whence.report.material import Material
from whence.report.templating import no_formula, visible
from whence.report.words import Piece


def prompt_table(material: Material) -> pd.DataFrame:
    """One row per answer: what both models said, the ends of its ranking, and what word overlap shares with it."""
    rows = []
    for entry in entries(material, Details(material)):
        row = {
            "query_id": visible(entry.name),
            "prompt": visible(entry.prompt),
            "reference": None if entry.reference is None else visible(entry.reference),
            "base_answer": _joined(entry.base),
            "finetuned_answer": _joined(entry.finetuned),
            "matches_reference": entry.matches,
            "scored_answer": entry.scored,
            "shared_with_bm25": entry.shared,
            "listed": len(entry.helpful),
        }
        for direction in DIRECTIONS:
            first = next(iter(getattr(entry, direction)), None)
            row[f"most_{direction}"] = material.examples[first.place].example_id if first else None
            row[f"most_{direction}_z_score"] = first.z_score if first else None
        rows.append(row)
    return pd.DataFrame(rows)


def example_table(material: Material) -> pd.DataFrame:
    """One row per listed example: in how many lists of each direction it stands, and its self-influence."""
    counts: dict[str, Counter[str]] = {direction: Counter() for direction in DIRECTIONS}
    for row in material.influences.itertuples():
        counts[row.direction][row.example_id] += 1
    listed = sorted(set().union(*counts.values()), key=material.places.__getitem__)
    return pd.DataFrame(
        {
            "example_id": listed,
            "helpful_to": [counts["helpful"][example_id] for example_id in listed],
            "harmful_to": [counts["harmful"][example_id] for example_id in listed],
            "label": [material.examples[material.places[example_id]].label for example_id in listed],
            "self_influence": [
                None if material.self_influence is None else float(material.self_influence[material.places[example_id]])
                for example_id in listed
            ],
        }
    )


def for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """The table with no text that a spreadsheet would compute."""
    return table.map(lambda value: no_formula(value) if isinstance(value, str) else value)


def _joined(pieces: list[Piece] | None) -> str | None:
    return None if pieces is None else visible("".join(piece.text for piece in pieces))
