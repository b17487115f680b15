"""The data view: examples that act on many answers, suspected wrong labels, which class or source moves what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from whence.estimates import Bootstrap
from whence.influence.sources import influence_by_source
from whence.report.answers import EXCERPT
from whence.report.material import Material
from whence.report.words import no_formula, shortened, visible

OFTEN_SHOWN = 10
SUSPECTS_SHOWN = 20
SUSPECTS_IN_FILE = 500
CLASSES_SHOWN = 12
SOURCES_SHOWN = 20
SHADES = 5


@dataclass(frozen=True)
class Flow:
    """Mean z-score of the examples of a class (rows) on the queries with an answer of a class (columns).

    ``notes`` say what was grouped.
    """

    rows: list[str]
    row_sizes: list[int]
    columns: list[str]
    column_sizes: list[int]
    values: np.ndarray
    notes: list[str]

    def step(self, value: float) -> int:
        """The shade of a cell, -5 to 5, by the root of its size: one strong cell is not to hide all others."""
        strongest = float(np.abs(self.values).max(initial=0.0))
        return round(float(np.sign(value)) * SHADES * (abs(value) / strongest) ** 0.5) if strongest > 0 else 0


def often(material: Material, direction: str) -> pd.DataFrame:
    """The examples that are listed for the most queries, of one direction: ``queries, mean_z`` and what they are."""
    listed = material.influences[material.influences["direction"] == direction]
    counts = listed.groupby("example_id", sort=False)["z_score"].agg(queries="size", mean_z="mean")
    counts = counts.assign(strength=counts["mean_z"].abs())
    counts = counts.sort_values(["queries", "strength"], ascending=False, kind="stable").head(OFTEN_SHOWN)
    examples = _shown(material, [material.places[example_id] for example_id in counts.index])
    return counts[["queries", "mean_z"]].reset_index(drop=True).join(examples)


def suspects(material: Material, count: int = SUSPECTS_IN_FILE) -> pd.DataFrame:
    """The examples with the highest self-influence, which the model had to learn by themselves, highest first.

    Returns:
        ``rank, self_influence, example_id, label, text``, and ``flipped``, whether the label is wrong, where the truth
        is known; no row where self-influence was not computed.
    """
    if material.self_influence is None:
        return pd.DataFrame()
    order = np.argsort(-material.self_influence, kind="stable")[:count]
    table = _shown(material, order.tolist())
    table.insert(0, "rank", range(1, len(order) + 1))
    table.insert(1, "self_influence", material.self_influence[order].astype(np.float64))
    truth = material.train.truth
    return table if truth is None else table.assign(flipped=truth["flipped"].to_numpy(dtype=bool)[order])


def for_spreadsheets(table: pd.DataFrame) -> str:
    """The table as CSV, with no text that a spreadsheet would compute."""
    escaped = table.map(lambda value: no_formula(visible(value)) if isinstance(value, str) else value)
    return str(escaped.to_csv(index=False, lineterminator="\n"))


def class_flow(material: Material) -> Flow | None:
    """How the examples of each class act on the answers of each class; None without queries or labels.

    Up to :data:`CLASSES_SHOWN` classes of a side stand by name: those of the most answers, then of the most examples,
    in the same order on both sides, so that a class meets itself on the diagonal. All others are together in one.
    """
    labels = [str(example.label or "") for example in material.examples]
    answers = [str(answer) for answer in material.queries["completion"]]
    if not answers or not any(labels):
        return None
    answer_counts, label_counts = Counter(answers), Counter(labels)
    order = sorted(answer_counts | label_counts, key=lambda name: (-answer_counts[name], -label_counts[name], name))
    rows, row_codes, row_note = _classes(labels, order, "classes of examples")
    columns, column_codes, column_note = _classes(answers, order, "answers")
    deviation = material.scores.std(axis=1, keepdims=True)
    centred = material.scores - material.scores.mean(axis=1, keepdims=True)
    z = np.divide(centred, deviation, out=np.zeros_like(centred, dtype=np.float64), where=deviation > 0)
    by_class = z @ np.eye(len(rows))[row_codes] / np.bincount(row_codes, minlength=len(rows))  # [queries, classes]
    sizes = np.bincount(column_codes, minlength=len(columns))
    values = (np.eye(len(columns))[column_codes].T @ by_class / sizes[:, None]).T
    return Flow(
        rows,
        np.bincount(row_codes, minlength=len(rows)).tolist(),
        columns,
        sizes.tolist(),
        values,
        [note for note in (row_note, column_note) if note],
    )


def flow_table(flow: Flow) -> pd.DataFrame:
    """The flow as a long table, to be kept with the run."""
    wide = pd.DataFrame(flow.values, columns=flow.columns).assign(example_class=flow.rows)
    return wide.melt("example_class", var_name="answer", value_name="mean_z_score")


def by_source(material: Material) -> pd.DataFrame:
    """The share of the influence that the examples of each source have; no row where all are from one, or no query."""
    sources = material.train.frame["source"].tolist()
    if len(set(sources)) < 2 or not len(material.queries):
        return pd.DataFrame()
    return influence_by_source(material.scores, sources, Bootstrap.of(material.config))


def _classes(values: Sequence[str], order: Sequence[str], what: str) -> tuple[list[str], np.ndarray, str]:
    present = set(values)
    names = [name for name in order if name in present]
    if len(names) > CLASSES_SHOWN:
        names = names[: CLASSES_SHOWN - 1]
    rest = len(present) - len(names)
    number = {name: code for code, name in enumerate(names)}
    codes = np.array([number.get(value, len(names)) for value in values], dtype=int)
    if not rest:
        return names, codes, ""
    note = f"{rest:,} further {what} are in one, all others."
    return [*names, "all others"], codes, note


def _shown(material: Material, places: Sequence[int]) -> pd.DataFrame:
    """Examples as tables show them; of type object, because text of data need not be Unicode."""
    examples = [material.examples[place] for place in places]
    return pd.DataFrame(
        {
            "example_id": [example.example_id for example in examples],
            "label": ["" if example.label is None else str(example.label) for example in examples],
            "text": [shortened(material.texts[place], EXCERPT) for place in places],
        },
        dtype=object,
    )
