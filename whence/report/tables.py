"""What the report says in files that MLflow keeps and compares across runs: its headlines and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from whence.estimates import Estimate
from whence.report import data, overview
from whence.report.answers import DIRECTIONS, entries
from whence.report.material import Material
from whence.report.words import Piece, estimated, plain

IN = "This run in "


def write_tables(folder: Path, material: Material, left_out: Sequence[str] = ()) -> None:
    """Write ``summary.md``, ``prompts.csv``, ``examples.csv`` and, where they are known, ``class_flow.csv``,
    ``sources.csv`` and ``self_influence.csv`` (the suspected wrong labels).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.md").write_text(summary_text(material, left_out), encoding="utf-8")
    tables = {"prompts": prompt_table(material), "examples": example_table(material)}
    tables |= {"self_influence": data.suspects(material), "sources": data.by_source(material)}
    flow = data.class_flow(material)
    if flow is not None:
        tables["class_flow"] = data.flow_table(flow)
    for name, table in tables.items():
        if len(table):
            (folder / f"{name}.csv").write_text(data.for_spreadsheets(table), encoding="utf-8")


def prompt_table(material: Material) -> pd.DataFrame:
    """One row per answer: what both models said, the ends of its ranking, and what word overlap shares with it."""
    rows = []
    for entry in entries(material, material.details):
        row = {
            "query_id": entry.name,
            "prompt": entry.prompt,
            "reference": entry.reference,
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
    listed, own = material.influences, material.self_influence
    counts = pd.crosstab(listed["example_id"], listed["direction"]).reindex(columns=list(DIRECTIONS), fill_value=0)
    counts = counts.loc[sorted(counts.index, key=material.places.__getitem__)]
    places = [material.places[example_id] for example_id in counts.index]
    return pd.DataFrame(
        {
            "example_id": counts.index,
            "helpful_to": counts["helpful"].to_numpy(),
            "harmful_to": counts["harmful"].to_numpy(),
            "label": [material.examples[place].label for place in places],
            "self_influence": None if own is None else own[places],
        }
    )


def _joined(pieces: list[Piece] | None) -> str | None:
    return None if pieces is None else "".join(piece.text for piece in pieces)


def summary_text(material: Material, left_out: Sequence[str] = ()) -> str:
    """What was trained on what, the grade of the evidence and the headline numbers, in Markdown."""
    lines = [f"# {plain(overview.title(material))}", ""]
    lines += [f"**Not the whole run:** {plain('; '.join(material.failures))}", ""] if material.failures else []
    lines += [f"- **{name}:** {plain(text)}" for name, text in overview.facts(material)]
    lines += ["", "## Evidence", ""]
    if material.evidence is None:
        lines.append("Not measured.")
    else:
        grade = material.evidence.grade
        lines.append(f"**{grade.word.capitalize()}.** {plain(grade.sentence)}")
        judged = [criterion for criterion in grade.criteria if criterion.passed is not None]
        marks = {True: "reached", False: "not reached"}
        lines += ["", *(f"- {marks[bool(found.passed)]}: {plain(found.sentence)}" for found in judged)]
        if len(judged) < len(grade.criteria):
            lines.append(f"- not measured in this run: {len(grade.criteria) - len(judged)} further thresholds")
    lines += ["", "## Base against fine-tuned", "", *_table(overview.measures(material))]
    benchmark = overview.benchmark(material)
    if benchmark:
        lines += ["", f"## {plain(overview.benchmark_name(material))}", "", *_table(benchmark)]
    lines += ["", *left_out] if left_out else []
    lines += ["", *(f"- **Not in MLflow:** {plain(what)}" for what in material.links.not_recorded)]
    links = [("MLflow", material.links.mlflow), ("Kubeflow Pipelines", material.links.kubeflow)]
    lines += ["", *(f"[{IN}{name}]({url})" for name, url in links if url)]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[overview.Row]) -> list[str]:
    head = ["| measure | over | base | fine-tuned |", "|---|---|---|---|"]
    cells = [
        (plain(row.title), plain(row.over), *(_estimate(found, row.is_share) for found in (row.base, row.finetuned)))
        for row in rows
    ]
    return [*head, *(f"| {' | '.join(row)} |" for row in cells)]


def _estimate(found: Estimate | None, is_share: bool) -> str:
    return "" if found is None else estimated(found.value, found.low, found.high, is_share)
