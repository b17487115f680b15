"""What scoring leaves in a folder: the score matrix, where it comes from, and the tables made of it. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from whence.data.dataset import ExampleSet
from whence.errors import DataError

SCORES, MATRIX = "scores.safetensors", "all_modules"
SCORES_INFO = "scores.json"
QUERIES = "queries.parquet"
INFLUENCES = "influences.parquet"
TOKENS = "tokens.parquet"
MODULES = "modules.parquet"
TURNS = "turns.parquet"
SELF_INFLUENCE = "self_influence.parquet"
QUERY_SKETCHES = "query_sketches.safetensors"
BASELINES = "baselines.safetensors"
GRADIENT_COSINE, EMBEDDING = "gradient_cosine", "embedding"


class PairDetail(NamedTuple):
    """One score divided: among the example's tokens (``piece, score``), among ``layer, module, score``, and among the
    assistant's turns of a conversation that has several (``turn, score``, from 1).
    """

    tokens: pd.DataFrame
    modules: pd.DataFrame
    turns: pd.DataFrame


@dataclass(frozen=True)
class Scores:
    """The scores in ``folder``; each table is read when it is first looked at."""

    folder: Path

    @cached_property
    def matrix(self) -> np.ndarray:
        """``[queries, examples]`` fp32; positive where the example lowers the query's loss."""
        return np.asarray(load_file(self.folder / SCORES)[MATRIX])

    @cached_property
    def queries(self) -> pd.DataFrame:
        """A row per row of the matrix: ``query_id, prompt, completion``, and the tokens of generated answers."""
        return pd.read_parquet(self.folder / QUERIES)

    @cached_property
    def influences(self) -> pd.DataFrame:
        """The strongest examples of each query, as :func:`whence.influence.ranking.influence_table` has them."""
        return pd.read_parquet(self.folder / INFLUENCES)

    @cached_property
    def tokens(self) -> pd.DataFrame | None:
        """The listed scores by token: ``query_id, example_id, pieces, scores``; None without ``scores.detail``."""
        return self._table(TOKENS)

    @cached_property
    def modules(self) -> pd.DataFrame | None:
        """The listed scores by module: ``query_id, example_id, layer, module, score``; None without the detail."""
        return self._table(MODULES)

    @cached_property
    def turns(self) -> pd.DataFrame | None:
        """The listed scores of conversations by turn: ``query_id, example_id, turn, score``; None as above."""
        return self._table(TURNS)

    @cached_property
    def self_influence(self) -> np.ndarray | None:
        """Of every example on itself, ``[examples]``; None without ``scores.self_influence``."""
        table = self._table(SELF_INFLUENCE)
        return None if table is None else table["self_influence"].to_numpy()

    @cached_property
    def gradient_norms(self) -> np.ndarray | None:
        """Squared length of every example's gradient, without any curvature, ``[examples]``; None as above."""
        table = self._table(SELF_INFLUENCE)
        return None if table is None or "gradient_norm" not in table else table["gradient_norm"].to_numpy()

    @cached_property
    def query_sketches(self) -> np.ndarray:
        """Of the queries' whitened gradients, ``[queries, index.dimensions]`` fp32, where there is an index."""
        return np.asarray(load_file(self.folder / QUERY_SKETCHES)[MATRIX])

    @cached_property
    def baselines(self) -> dict[str, np.ndarray]:
        """What the evidence compares scores with, each ``[queries, examples]`` fp32.

        ``gradient_cosine`` is that of plain gradients of the tracked modules, influence without the curvature;
        ``embedding`` the cosine of means of the last layer's states over all tokens.

        Raises:
            DataError: they were not taken.
        """
        try:
            return dict(load_file(self.folder / BASELINES))
        except FileNotFoundError as error:
            raise DataError(
                f"the scores in {self.folder} have no baselines to compare them with",
                hint="score again with scores.baselines true",
            ) from error

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What was scored: fingerprints of ``factors, model, tokenizer, train_data``, and the settings."""
        origin: dict[str, Any] = json.loads((self.folder / SCORES_INFO).read_text(encoding="utf-8"))
        return origin

    def rank(
        self, query_id: str, top_k: int | None = None, direction: Literal["helpful", "harmful"] = "helpful"
    ) -> pd.DataFrame:
        """The training examples that helped (or harmed) a query's answer most, best first.

        Args:
            top_k: how many, ``scores.top_k`` at most; None: all that are listed.

        Raises:
            DataError: there is no such query.
        """
        if query_id not in set(self.queries["query_id"]):
            known = ", ".join(self.queries["query_id"].head(5))
            raise DataError(f"no query {query_id!r} was scored in {self.folder}", hint=f"there are {known}, ...")
        listed = self.influences
        rows = listed[(listed["query_id"] == query_id) & (listed["direction"] == direction)]
        return rows.head(top_k or len(rows)).reset_index(drop=True)

    def detail(self, query_id: str, example_id: str) -> PairDetail:
        """The score of a listed example on a query, divided among tokens, modules and turns; all sum up to it.

        Raises:
            DataError: scores were not divided, or the example is not listed for the query.
        """
        if self.tokens is None or self.modules is None or self.turns is None:
            raise DataError(
                f"the scores in {self.folder} were not divided", hint="set scores.detail to true and score again"
            )
        tokens, modules, turns = (
            table[(table["query_id"] == query_id) & (table["example_id"] == example_id)].reset_index(drop=True)
            for table in (self.tokens, self.modules, self.turns)
        )
        if tokens.empty:
            raise DataError(
                f"example {example_id!r} is not listed for query {query_id!r} in {self.folder}",
                hint="raise scores.top_k",
            )
        row = tokens.iloc[0]
        pieces = pd.DataFrame({"piece": row["pieces"], "score": row["scores"]})
        return PairDetail(pieces, modules[["layer", "module", "score"]], turns[["turn", "score"]])

    def require_examples(self, examples: ExampleSet) -> None:
        """Refuse scores of other examples, which would be shown beside these examples' text.

        Raises:
            DataError: naming both fingerprints.
        """
        scored, wanted = self.origin["train_data"], examples.info.fingerprint
        if scored != wanted:
            raise DataError(
                f"the scores in {self.folder} are of other training data ({scored[:12]}...) than these examples "
                f"({wanted[:12]}...)",
                hint="score these examples first",
            )

    def _table(self, name: str) -> pd.DataFrame | None:
        return pd.read_parquet(self.folder / name) if (self.folder / name).exists() else None
