"""The headlines as Markdown, for the Kubeflow UI."""

from __future__ import annotations

import re
from collections.abc import Sequence

from whence.report import overview
from whence.report.material import Material
from whence.report.templating import visible

_MARKUP = re.compile(r"([\\`*_\[\]<>#|~])")


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
