"""An example's text in tokens, each with its part of an influence; small enough to stand in a page by the thousand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.report.templating import visible
from whence.report.words import gap, parts_kept

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_PAIRS = np.array([first + second for first in _DIGITS for second in _DIGITS], dtype=object)
_HALF = 2048  # two digits of 64 hold -2047 ... 2047


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

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def lengths(self) -> list[int]:
        """Of each piece, as JavaScript counts: in units of UTF-16."""
        return [utf16_length(piece) for piece in self.pieces]

    def weights(self, scores: Sequence[float]) -> dict[str, Any]:
        """Each piece's part of the score: ``m``, the largest in size, and ``w``, two digits per piece in steps of it.

        The digits are of base 64, and 2048 in the middle is zero: a part is kept to a two-thousandth of the largest.
        """
        parts = np.add.reduceat(np.asarray(scores, dtype=np.float64), self.starts)
        largest = float(np.abs(parts).max(initial=0.0))
        if not largest > 0 or not np.isfinite(largest):
            return {"m": 0, "w": ""}
        steps = np.rint(parts / largest * (_HALF - 1)).astype(int) + _HALF
        return {"m": float(f"{largest:.4g}"), "w": "".join(_PAIRS[steps])}


def utf16_length(text: str) -> int:
    """How long JavaScript finds the text."""
    return len(text.encode("utf-16-le")) // 2


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
