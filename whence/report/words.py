"""Numbers and texts as the pages write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

LONGEST_NAME = 80  # characters of an id, a label or a class
SHARES = (0.1, 0.5, 1, 2, 5, 10, 25, 50)  # percent
_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
# Control characters and lone surrogates cannot stand in HTML; direction marks make text read as something else
# (CVE-2021-42574). Scripts written from right to left need none of them: elements with text have dir="auto".
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MARKUP = re.compile(r"([\\`*_\[\]<>#|~])")  # of Markdown
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


class Piece(NamedTuple):
    """Part of an answer, and whether the other answer lacks it."""

    text: str
    differs: bool


def visible(text: str) -> str:
    """``text`` with a replacement character for each one that would not be seen, or would make others lie."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def no_formula(text: str) -> str:
    """``text`` as a spreadsheet takes it for text, whatever it begins with."""
    return f"'{text}" if text.startswith(_FORMULA_SIGNS) else text


def standing(rank: int, count: int, direction: str) -> str:
    """Where an example stands, e.g. ``among the top 0.1 % most helpful of 16,000``.

    Args:
        rank: 1 for the first.
        count: all training examples.
        direction: ``helpful`` or ``harmful``.
    """
    if rank == 1:
        return f"the most {direction} of {count:,}"
    share = next((share for share in SHARES if 100 * rank <= share * count), None)
    if share is None:
        return f"number {rank:,} of {count:,} by how {direction} it is"
    return f"among the top {share:g} % most {direction} of {count:,}"


def differences(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, those marked that a shortest edit of words would change."""
    left, right = (_PIECES.findall(text) for text in (one, other))
    kept = SequenceMatcher(a=left, b=right, autojunk=False).get_matching_blocks()
    return _marked(left, [(block.a, block.size) for block in kept]), _marked(
        right, [(block.b, block.size) for block in kept]
    )


def _marked(words: Sequence[str], kept: Sequence[tuple[int, int]]) -> list[Piece]:
    pieces, at = [], 0
    for start, size in kept:  # the last one is empty and stands at the end
        if start > at:
            pieces.append(Piece("".join(words[at:start]), True))
        if size:
            pieces.append(Piece("".join(words[start : start + size]), False))
        at = start + size
    return pieces


def shortened(text: str, limit: int) -> str:
    """``text`` of at most about ``limit`` characters: of a longer one the middle is left out, with its length."""
    if len(text) <= limit:
        return text
    head, tail = parts_kept(limit)
    return f"{text[:head]} {gap(len(text) - head - tail)} {text[len(text) - tail :]}"


def parts_kept(limit: int) -> tuple[int, int]:
    """How many characters of a too long text are kept at its start and its end, where question and answer stand."""
    tail = limit * 2 // 5
    return limit - tail, tail


def plain(text: str) -> str:
    """Text of the data as Markdown shows it: no markup, one line."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))


def counted(counts: Mapping[str, int]) -> str:
    """``2 empty text, 1 duplicate``: those that there are, by reason or by name."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def gap(characters: int) -> str:
    """What stands in place of left out text."""
    return f"[… {characters:,} characters …]"


def percent(value: float) -> str:
    """A share as ``97.8 %``; a negative one with a real minus sign."""
    return f"{100 * value:.1f} %".replace("-", "−")


def bounds(low: float, high: float, is_share: bool = True) -> str:
    """An interval: of a share in percent, without the sign, or of another measure."""
    text = f"{100 * low:.1f} to {100 * high:.1f}" if is_share else f"{measured(low)} to {measured(high)}"
    return text.replace("-", "−")


def estimated(value: float, low: float | None, high: float | None, is_share: bool) -> str:
    """A value with its interval, where it has one: ``97.8 % (96.1 to 100.0)``."""
    text = percent(value) if is_share else measured(value)
    return text if low is None or high is None else f"{text} ({bounds(low, high, is_share)})"


def at_revision(name: str, revision: str | None) -> str:
    """A model of the hub, as pinned."""
    return f"{name} @ {revision}" if revision else name


def signed(value: float) -> str:
    """Two decimals with a sign, as z-scores are written; what rounds to nothing has none."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def measured(value: float) -> str:
    """Three digits, as many as a measure with an interval bears."""
    return number(float(f"{value:.3g}"))


def number(value: float) -> str:
    """Four significant digits, thousands apart."""
    if not math.isfinite(value):
        return "infinite" if math.isinf(value) else "undefined"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def covered(coverage: Mapping[str, Any]) -> str:
    """How much of a model the influence is over (:class:`whence.influence.info.Coverage` as a dictionary)."""
    share = percent(coverage["tracked"] / coverage["parameters"])
    text = f"{share} of the model's parameters"
    if coverage["mlp_parameters"]:
        text += f", {percent(coverage['tracked_mlp'] / coverage['mlp_parameters'])} of its MLPs'"
    fused = coverage["fused"]
    if fused:
        more = f" and {len(fused) - 1:,} more" if len(fused) > 1 else ""
        text += f"; not over the fused experts ({fused[0]}{more})"
    return text
