"""An explanation as the service sends it: rows of text with their standing, their words' shares, layers and modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from whence.asking import Explanation
from whence.errors import DataError
from whence.influence.detail import Detail
from whence.influence.layout import layer_of, short_names
from whence.influence.ranking import z_scores
from whence.models.language import LanguageModel
from whence.report.details import OUTSIDE, TokenText, shares
from whence.report.words import LONGEST_NAME, shortened, standing, visible
from whence.run_folder import RunFolder
from whence.serving.events import End, Example, Influenced, Near, Row, Rows
from whence.validation.bm25 import words

LONGEST_EXAMPLE, EXCERPT = 4000, 400  # characters
BY_WORDS = 5  # rows of word overlap
OPENED = 5  # nearest examples, and queries, of an example that is opened
NAMES = {"id": "example_id", "label": "label", "source": "source_id"}


class RowWriter:
    """Writes the training examples behind an answer, and what is known of a single one."""

    def __init__(self, language: LanguageModel, frame: pd.DataFrame, run: RunFolder) -> None:
        """Take the training examples, columns :data:`whence.data.dataset.COLUMNS`, of ``run``."""
        self._language, self._frame, self._run = language, frame, run
        self._places = {example_id: place for place, example_id in enumerate(frame["example_id"])}

    def rows(self, found: Explanation, count: int, evidence: str) -> Rows:
        """The first ``count`` of each end, and the first by word overlap."""
        divided = Divided(found.detail) if found.detail else None
        listed: dict[End, pd.DataFrame] = {
            "helpful": found.best("helpful", count),
            "harmful": found.best("harmful", count),
            "overlap": found.by_words.head(BY_WORDS),
        }
        return Rows(
            exact=divided is not None,
            count=found.examples,
            stands_out=found.stands_out,
            in_words=found.in_words,
            evidence=evidence,
            layers=divided.layers if divided else [],
            kinds=divided.kinds if divided else [],
            rows=[
                self._row(end, number, row, found, divided)
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

    def _row(self, end: End, number: int, row: dict[str, Any], found: Explanation, divided: Divided | None) -> Row:
        text = TokenText.of(self._language.token_texts(row["prompt"], row["completion"]), LONGEST_EXAMPLE)
        place = None if end == "overlap" else int(row["place"])
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
            parts=text.parts(divided.tokens[place].tolist()) if divided and place is not None else [],
            layers=divided.by_layer(place) if divided and place is not None else None,
            kinds=divided.by_kind(place) if divided and place is not None else None,
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
            scores = self._run.scores
        except DataError:  # a champion comes without those of the run that made it
            return []
        queries, column = scores.queries, z_scores(scores.matrix.astype(np.float64))[:, place]
        strongest = np.argsort(-np.abs(column))[:OPENED].tolist()
        return [
            Influenced(id=visible(query["query_id"]), prompt=visible(query["prompt"]), z_score=float(column[number]))
            for number in strongest
            for query in [queries.iloc[number]]
        ]

    @cached_property
    def _words(self) -> Any:
        """TF-IDF of all examples, rows of length 1."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(analyzer=words).fit_transform([_text(row) for row in self._frame.to_dict("records")])


class Divided:
    """Scores divided among tokens, layers and types of module, by row of the explanation's table."""

    def __init__(self, detail: Detail) -> None:
        names = detail.module_names
        layers = [OUTSIDE if layer_of(name) is None else f"layer {layer_of(name)}" for name in names]
        kinds = [short.rsplit(".", 1)[-1] for short in short_names(names).values()]
        self.layers, self.kinds = list(dict.fromkeys(layers)), list(dict.fromkeys(kinds))
        self.tokens, self._modules = detail.tokens, detail.modules.astype(np.float64)
        self._by_layer, self._by_kind = _sums(layers, self.layers), _sums(kinds, self.kinds)

    def by_layer(self, place: int) -> list[float]:
        """Shares in the order of ``layers``."""
        return list(shares([self._by_layer @ self._modules[place]]))

    def by_kind(self, place: int) -> list[float]:
        """Shares in the order of ``kinds``."""
        return list(shares([self._by_kind @ self._modules[place]]))


def _sums(parts: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """``[order, parts]``: its product with a value for each part sums those of one name."""
    return np.array([[part == name for part in parts] for name in order], dtype=np.float64)


def _names(row: Mapping[str, Any] | pd.Series) -> dict[str, Any]:
    shown = {name: row[column] for name, column in NAMES.items()}
    return {
        name: None if pd.isna(value) else visible(shortened(str(value), LONGEST_NAME)) for name, value in shown.items()
    }


def _text(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{row['prompt']} {row['completion']}"
