"""Listed influences taken apart: by the tokens of the example, by layer and by type of module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from whence.report.words import gap, parts_kept, visible

OUTSIDE = "outside layers"
Pair = tuple[str, str]  # query_id, example_id
Shares = tuple[float, ...]  # of the sum of sizes, with their signs, to a thousandth


@dataclass(frozen=True)
class TokenText:
    """A text in pieces.

    Attributes:
        pieces: joined they are what is shown.
        starts: for each piece the first of the tokens it stands for; the next piece's first ends them.
    """

    pieces: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, pieces: Sequence[str], limit: int) -> TokenText:
        """Tokens without text of their own (special ones, later bytes of a character) join the piece before them, and
        the middle of a text longer than ``limit`` characters becomes one piece, so that no part of a score is lost.
        """
        starts = [number for number, piece in enumerate(pieces) if piece or not number]
        return cls(*_without_middle([visible(pieces[start]) for start in starts], starts, limit))

    def parts(self, scores: Sequence[float]) -> list[float]:
        """Each piece's part of the score, to a two-thousandth of the largest; empty where all are zero."""
        parts = np.add.reduceat(np.asarray(scores, dtype=np.float64), self.starts)
        largest = float(np.abs(parts).max(initial=0.0))
        if not largest > 0 or not np.isfinite(largest):
            return []
        decimals = 3 - math.floor(math.log10(largest))
        return [int(part) if part.is_integer() else part for part in np.round(parts, decimals).tolist()]


class Details:
    """What is known of each listed pair of query and example.

    Attributes:
        layers, kinds: what splits are in the order of; empty where nothing was split.
        pieces: the tokens of each example, which are the same for every query.
        token_scores: a pair's score, split by these tokens.
        turns: a pair's score, split by the turns of a conversation that has several.
    """

    def __init__(
        self,
        tokens: pd.DataFrame | None = None,
        modules: pd.DataFrame | None = None,
        turns: pd.DataFrame | None = None,
    ) -> None:
        """Read tables as :mod:`whence.influence.detail` makes them; None where nothing was split."""
        self.layers: list[str] = []
        self.kinds: list[str] = []
        self.pieces: dict[str, Sequence[str]] = {}
        self.token_scores: dict[Pair, Sequence[float]] = {}
        self.turns: dict[Pair, Shares] = {}
        self._by_layer: dict[Pair, np.ndarray] = {}
        self._by_kind: dict[Pair, np.ndarray] = {}
        if tokens is not None:
            self._read_tokens(tokens)
        if modules is not None and len(modules):
            self._read_modules(modules)
        if turns is not None:
            self.turns = {
                pair: _shares([scores.to_numpy()])
                for pair, scores in turns.groupby(["query_id", "example_id"])["score"]
            }

    def split(self, pairs: Sequence[Pair]) -> tuple[Shares | None, Shares | None]:
        """By layer and by type of module, of all pairs together; None where one was not split."""
        if not pairs or any(pair not in self._by_layer for pair in pairs):
            return None, None
        return _shares([self._by_layer[pair] for pair in pairs]), _shares([self._by_kind[pair] for pair in pairs])

    def _read_tokens(self, table: pd.DataFrame) -> None:
        first = table.drop_duplicates("example_id")
        self.pieces = dict(zip(first["example_id"], first["pieces"], strict=True))
        self.token_scores = dict(zip(_pairs(table), table["scores"], strict=True))

    def _read_modules(self, table: pd.DataFrame) -> None:
        kinds = [str(name).rsplit(".", 1)[-1] for name in table["module"]]
        layers = sorted(table["layer"].dropna().unique())
        places = [OUTSIDE if pd.isna(layer) else f"layer {layer}" for layer in table["layer"]]
        self.layers = [f"layer {layer}" for layer in layers] + ([OUTSIDE] if OUTSIDE in places else [])
        self.kinds = list(dict.fromkeys(kinds))
        self._by_layer = _sums(table.assign(part=places), self.layers)
        self._by_kind = _sums(table.assign(part=kinds), self.kinds)


def _sums(table: pd.DataFrame, parts: Sequence[object]) -> dict[Pair, np.ndarray]:
    sums = table.pivot_table(
        index=["query_id", "example_id"], columns="part", values="score", aggfunc="sum", fill_value=0.0
    )
    return dict(zip(sums.index, sums[list(parts)].to_numpy(), strict=True))


def _shares(values: Sequence[np.ndarray]) -> Shares:
    summed = np.sum(values, axis=0)
    whole = float(np.abs(summed).sum())
    return tuple(round(float(value / whole), 3) if whole > 0 else 0.0 for value in summed)


def _pairs(table: pd.DataFrame) -> list[Pair]:
    return list(zip(table["query_id"], table["example_id"], strict=True))


def _without_middle(texts: list[str], starts: list[int], limit: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    ends = np.cumsum([len(text) for text in texts], dtype=int)
    if not len(ends) or ends[-1] <= limit:
        return tuple(texts), tuple(starts)
    head, tail = parts_kept(limit)
    first = int(np.searchsorted(ends, head, side="right"))
    last = int(np.searchsorted(ends, ends[-1] - tail, side="left")) + 1
    if last <= first:  # one token as long as that is none of a language
        first, last = 0, len(texts)
    left_out = int(ends[last - 1] - (ends[first - 1] if first else 0))
    return (*texts[:first], f" {gap(left_out)} ", *texts[last:]), (*starts[: first + 1], *starts[last:])
