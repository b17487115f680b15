"""What the report says in files that MLflow keeps and compares across runs: its headlines and its tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from whence.report import data, overview
from whence.report.answers import DIRECTIONS, entries
from whence.report.details import Details
from whence.report.material import Material
from whence.report.words import Piece, visible

_MARKUP = re.compile(r"([\\`*_\[\]<>#|~])")


def write_tables(folder: Path, material: Material, left_out: Sequence[str] = ()) -> None:
    """Write ``summary.md``, ``prompts.csv``, ``examples.csv`` and, where they are known, ``class_flow.csv`` and
    ``self_influence.csv`` (the suspected wrong labels).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.md").write_text(summary_text(material, left_out), encoding="utf-8")
    tables = {"prompts": prompt_table(material), "examples": example_table(material)}
    flow, suspects = data.class_flow(material), data.suspects(material)
    if flow is not None:
        tables["class_flow"] = data.flow_table(flow)
    files = {name: data.for_spreadsheets(table) for name, table in tables.items()}
    if suspects:
        files["self_influence"] = data.suspects_csv(suspects)
    for name, content in files.items():
        (folder / f"{name}.csv").write_text(content, encoding="utf-8")


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


def _joined(pieces: list[Piece] | None) -> str | None:
    return None if pieces is None else visible("".join(piece.text for piece in pieces))


def summary_text(material: Material, left_out: Sequence[str] = ()) -> str:
    """What was trained on what, the grade of the evidence and the headline numbers, in Markdown."""
    lines = [f"# {_plain(overview.title(material))}", ""]
    lines += [f"- **{name}:** {_plain(text)}" for name, text in overview.facts(material)]
    lines += ["", "## Evidence", ""]
    if material.evidence is None:
        lines.append("Not measured.")
    else:
        grade = material.evidence.grade
        lines.append(f"**{grade.word.capitalize()}.** {_plain(grade.sentence)}")
        judged = [criterion for criterion in grade.criteria if criterion.passed is not None]
        marks = {True: "reached", False: "not reached"}
        lines += ["", *(f"- {marks[bool(found.passed)]}: {_plain(found.sentence)}" for found in judged)]
        if len(judged) < len(grade.criteria):
            lines.append(f"- not measured in this run: {len(grade.criteria) - len(judged)} further thresholds")
    lines += ["", "## Base against fine-tuned", "", *_table(overview.measures(material))]
    benchmark = overview.benchmark(material)
    if benchmark:
        lines += ["", f"## {_plain(overview.benchmark_name(material))}", "", *_table(benchmark)]
    links = [("MLflow", material.links.mlflow), ("Kubeflow Pipelines", material.links.kubeflow)]
    lines += ["", *(f"[This run in {name}]({url})" for name, url in links if url)]
    lines += ["", *left_out] if left_out else []
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[overview.Row]) -> list[str]:
    head = ["| measure | over | base | fine-tuned |", "|---|---|---|---|"]
    cells = [(_plain(row.title), _plain(row.over), _estimate(row.base), _estimate(row.finetuned)) for row in rows]
    return [*head, *(f"| {' | '.join(row)} |" for row in cells)]


def _estimate(found: overview.Estimate | None) -> str:
    return "" if found is None else f"{found.text} ({found.bounds})"


def _plain(text: str) -> str:
    """Text of the data as text: no markup, one line."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))
