"""Listed influences taken apart: by the tokens of the example, by layer and by type of module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from whence.report.material import Material

OUTSIDE = "outside layers"
Pair = tuple[str, str]  # query_id, example_id


@dataclass(frozen=True)
class Split:
    """An influence by where in the model it comes through: shares of the sum of sizes, with their signs."""

    shares: tuple[float, ...]

    @property
    def permille(self) -> list[int]:
        return [round(1000 * share) for share in self.shares]


class Details:
    """What is known of each listed pair of query and example.

    Attributes:
        layers, kinds: what splits are in the order of; empty where nothing was split.
        pieces: the tokens of each example, which are the same for every query.
        token_scores: a pair's score, split by these tokens.
    """

    def __init__(self, material: Material) -> None:
        self.layers: list[str] = []
        self.kinds: list[str] = []
        self.pieces: dict[str, Sequence[str]] = {}
        self.token_scores: dict[Pair, Sequence[float]] = {}
        self._by_layer: dict[Pair, np.ndarray] = {}
        self._by_kind: dict[Pair, np.ndarray] = {}
        if material.tokens is not None:
            self._read_tokens(material.tokens)
        if material.modules is not None and len(material.modules):
            self._read_modules(material.modules)

    def split(self, pairs: Sequence[Pair]) -> tuple[Split | None, Split | None]:
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


def _shares(values: Sequence[np.ndarray]) -> Split:
    summed = np.sum(values, axis=0)
    whole = float(np.abs(summed).sum())
    return Split(tuple(float(value / whole) if whole > 0 else 0.0 for value in summed))


def _pairs(table: pd.DataFrame) -> list[Pair]:
    return list(zip(table["query_id"], table["example_id"], strict=True))
