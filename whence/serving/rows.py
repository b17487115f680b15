"""An explanation as the service sends it: rows of text with their standing, their words' shares, layers and modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from whence.asking import Explanation
from whence.errors import DataError
from whence.influence.detail import module_table, turn_table
from whence.influence.ranking import z_scores
from whence.models.language import LanguageModel
from whence.report.details import Details, TokenText
from whence.report.words import LONGEST_NAME, shortened, standing, visible
from whence.run_folder import RunFolder
from whence.serving.events import End, Example, Influenced, Near, Row, Rows
from whence.validation.bm25 import words

LONGEST_EXAMPLE, EXCERPT = 4000, 400  # characters
BY_WORDS = 5  # rows of word overlap
OPENED = 5  # nearest examples, and queries, of an example that is opened
NAMES = {"id": "example_id", "label": "label", "source": "source"}


class RowWriter:
    """Writes the training examples behind an answer, and what is known of a single one."""

    def __init__(self, language: LanguageModel, frame: pd.DataFrame, run: RunFolder) -> None:
        """Take the training examples, columns :data:`whence.data.dataset.COLUMNS`, of ``run``."""
        self._language, self._frame, self._run = language, frame, run
        self._places = {example_id: place for place, example_id in enumerate(frame["example_id"])}

    def rows(self, found: Explanation, count: int, evidence: str) -> Rows:
        """The first ``count`` of each end, and the first by word overlap."""
        detail, table = found.detail, found.table.assign(query_id="")  # the one query that there is
        details = Details()
        if detail is not None:
            details = Details(modules=module_table(table, detail), turns=turn_table(table, detail))
        listed: dict[End, pd.DataFrame] = {
            "helpful": found.best("helpful", count),
            "harmful": found.best("harmful", count),
            "overlap": found.by_words.head(BY_WORDS),
        }
        return Rows(
            exact=detail is not None,
            count=found.examples,
            stands_out=found.stands_out,
            in_words=found.in_words,
            evidence=evidence,
            layers=details.layers,
            kinds=details.kinds,
            rows=[
                self._row(end, number, row, found, details)
                for end, table in listed.items()
                for number, row in enumerate(table.reset_index(names="place").to_dict("records"), 1)
            ],
        )

    def open(self, example_id: str) -> Example | None:
        """An example in full, its nearest ones by words, and the queries of the run that it had influence on."""
        place = self._places.get(example_id)
        if place is None:
            return None
        example = self._frame.iloc[place]
        return Example(
            prompt=visible(example["prompt"]),
            completion=visible(example["completion"]),
            nearest=self._nearest(place),
            influences=self._influences(place),
            **_names(example),
        )

    def _row(self, end: End, number: int, row: dict[str, Any], found: Explanation, details: Details) -> Row:
        text = TokenText.of(self._language.token_texts(row["prompt"], row["completion"]), LONGEST_EXAMPLE)
        tokens = found.detail.tokens[row["place"]] if found.detail and end != "overlap" else None
        layers, kinds = details.split([] if tokens is None else [("", row["example_id"])])
        return Row(
            end=end,
            rank=number,
            pieces=list(text.pieces),
            completion=visible(row["completion"])[:LONGEST_EXAMPLE],
            standing="" if end == "overlap" else standing(number, found.examples, end),
            score=None if end == "overlap" else row["score"],
            z_score=None if end == "overlap" else row["z_score"],
            overlap_rank=row["rank"] if end == "overlap" else row["bm25_rank"],
            influence_rank=found.rank_of(row["row"]),
            parts=[] if tokens is None else text.parts(tokens.tolist()),
            layers=None if layers is None else list(layers),
            kinds=None if kinds is None else list(kinds),
            turns=list(details.turns.get(("", row["example_id"]), ())) if end != "overlap" else [],
            **_names(row),
        )

    def _nearest(self, place: int) -> list[Near]:
        similarity = (self._words @ self._words[place].T).toarray().ravel()
        similarity[place] = 0.0
        order = [int(other) for other in np.argsort(-similarity, kind="stable")[:OPENED] if similarity[other] > 0]
        return [
            Near(
                id=_names(row)["id"], similarity=float(similarity[other]), text=visible(shortened(_text(row), EXCERPT))
            )
            for other in order
            for row in [self._frame.iloc[other]]
        ]

    def _influences(self, place: int) -> list[Influenced]:
        try:
            queries, column = self._run.scores.queries, self._standard[:, place]
        except DataError:  # a champion comes without the scores of the run that made it
            return []
        strongest = np.argsort(-np.abs(column))[:OPENED].tolist()
        return [
            Influenced(id=visible(query["query_id"]), prompt=visible(query["prompt"]), z_score=float(column[number]))
            for number in strongest
            for query in [queries.iloc[number]]
        ]

    @cached_property
    def _standard(self) -> np.ndarray:
        """The z-scores of the run's own queries, ``[queries, examples]``."""
        return z_scores(self._run.scores.matrix.astype(np.float64))

    @cached_property
    def _words(self) -> Any:
        """TF-IDF of all examples, rows of length 1."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(analyzer=words).fit_transform([_text(row) for row in self._frame.to_dict("records")])


def _names(row: Mapping[str, Any] | pd.Series) -> dict[str, Any]:
    shown = {name: row[column] for name, column in NAMES.items()}
    return {
        name: None if pd.isna(value) else visible(shortened(str(value), LONGEST_NAME)) for name, value in shown.items()
    }


def _text(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{row['prompt']} {row['completion']}"
