"""Evidence for people and for trackers: a table, scalars, Markdown. Needs no torch."""

from __future__ import annotations

import pandas as pd

from whence.estimates import Estimate
from whence.validation.evidence import METHOD_NAMES, METHODS, Criterion, Evidence

_VERDICTS = {True: "reached", False: "missed", None: "not measured"}


def headline(evidence: Evidence) -> dict[str, float]:
    """The values alone, by measure and method: ``planted_recall.influence``, ``planted_recall.bm25``, ..."""
    return {
        f"{measure.name}.{method}": estimate.value
        for measure in evidence.measures
        for method, estimate in measure.methods.items()
    }


def flat_table(evidence: Evidence) -> pd.DataFrame:
    """One row per measure and method: ``measure, title, method, value, low, high, items``."""
    rows = [
        {"measure": measure.name, "title": measure.title, "method": method, **estimate.model_dump()}
        for measure in evidence.measures
        for method, estimate in measure.methods.items()
    ]
    return pd.DataFrame(rows, columns=["measure", "title", "method", *Estimate.model_fields]).astype(
        {"value": float, "low": float, "high": float}
    )


def wide_rows(evidence: Evidence) -> list[list[str]]:
    """A row of text per measure: its name, and the value of each of :data:`METHODS`, empty where there is none."""
    return [
        [measure.name, *(_value(measure.methods.get(method)) for method in METHODS)] for measure in evidence.measures
    ]


def markdown(evidence: Evidence) -> str:
    """Grade, numbers with intervals, thresholds, and what was not measured, as the Kubeflow UI shows it."""
    lines = [f"# Evidence: {evidence.grade.word}", "", evidence.grade.sentence, ""]
    if evidence.measures:
        lines += [_row(["measure", *(METHOD_NAMES[method] for method in METHODS)]), _row(["---"] * (len(METHODS) + 1))]
        for measure in evidence.measures:
            lines.append(_row([measure.title, *(_interval(measure.methods.get(method)) for method in METHODS)]))
        lines += ["", *(f"- *{measure.title}*: {measure.explanation}" for measure in evidence.measures), ""]
    judged = [criterion for criterion in evidence.grade.criteria if criterion.passed is not None]
    if judged:
        lines += ["## Thresholds", "", *map(_threshold, judged), ""]
    if evidence.not_measured:
        lines += ["## Not measured", "", *(f"- {item.name}: {item.why}" for item in evidence.not_measured), ""]
    return "\n".join(lines)


def _threshold(criterion: Criterion) -> str:
    return f"- {_VERDICTS[criterion.passed]}: {criterion.sentence}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _value(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.2f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return _value(estimate)
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
