"""Cleaning of raw text and rows: only what the settings ask for. Every row that goes or is changed is counted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from whence.config import Cleaning

if TYPE_CHECKING:
    import pandas as pd

CHANGES = "changes"
"""Column with the kinds of change that a row has seen."""

# Soft hyphen, zero-width space, word joiner, byte order mark, and the marks and overrides of writing direction. The
# zero-width joiners stay, for scripts and emoji are written with them.
_MARKS = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_INVISIBLE = re.compile(f"[{_MARKS}\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")  # all control characters but white space
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_SPACES = "[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+"
_INNER_SPACES, _LAST_SPACES = re.compile(rf"(?<=\S){_SPACES}"), re.compile(rf"{_SPACES}(?=[\r\n]|\Z)")


def clean_text(text: str, settings: Cleaning, *, is_input: bool) -> tuple[str, tuple[str, ...]]:
    """A text with the changes that ``settings`` ask for, and the kinds of those that made a difference.

    Halves of surrogate pairs, which no file or tokenizer takes, become U+FFFD whatever the settings. Cleaning a clean
    text changes nothing.

    Args:
        is_input: whether it is an input; case of answers is never folded.
    """
    changes = []
    for kind, change in _steps(settings, is_input).items():
        before, text = text, change(text)
        if text != before:
            changes.append(kind)
    return text, tuple(changes)


def _steps(settings: Cleaning, is_input: bool) -> dict[str, Callable[[str], str]]:
    steps: dict[str, Callable[[str], str]] = {"with_half_characters_replaced": partial(_HALF_CHARACTER.sub, "\ufffd")}
    if settings.remove_invisible:
        steps["without_invisible_characters"] = partial(_INVISIBLE.sub, "")
    if settings.lowercase and is_input:
        steps["lowercased"] = str.lower
    if settings.unicode is not None:
        steps[f"brought_to_{settings.unicode}"] = partial(unicodedata.normalize, settings.unicode)
    if settings.single_spaces:
        steps["with_single_spaces"] = lambda text: _LAST_SPACES.sub("", _INNER_SPACES.sub(" ", text))
    return steps


def look(text: str) -> str:
    """What two texts that look the same have in common: NFKC, single spaces, nothing invisible. Only to compare by."""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", _HALF_CHARACTER.sub(" ", text)))
    return " ".join(text.split())


def clean_rows(rows: pd.DataFrame, settings: Cleaning) -> tuple[pd.DataFrame, Counter[str]]:
    """Clean the columns ``input`` and ``output`` and drop rows that cannot be used.

    Returns:
        The remaining rows with their old index and a column :data:`CHANGES`, and the number of dropped rows by reason:
        ``missing_value``, ``empty_input``, ``empty_output``, ``short_input``, ``duplicate``.
    """
    dropped: Counter[str] = Counter()

    def drop(frame: pd.DataFrame, bad: pd.Series, reason: str) -> pd.DataFrame:
        dropped[reason] += int(bad.sum())
        return frame[~bad]

    rows = drop(rows, rows["input"].isna() | rows["output"].isna(), "missing_value")
    cleaned = {
        column: [clean_text(text, settings, is_input=column == "input") for text in rows[column]]
        for column in ("input", "output")
    }
    changes = [
        tuple(dict.fromkeys(one + other))
        for (_, one), (_, other) in zip(cleaned["input"], cleaned["output"], strict=True)
    ]
    rows = rows.assign(
        **{column: [text for text, _ in texts] for column, texts in cleaned.items()}, **{CHANGES: changes}
    )
    for column in cleaned:
        rows = drop(rows, rows[column].map(lambda text: not look(text)).astype(bool), f"empty_{column}")
    short = rows["input"].map(lambda text: len(text.split()) < settings.min_words).astype(bool)  # also of no rows
    rows = drop(rows, short, "short_input")
    if settings.drop_duplicates:
        rows = drop(rows, rows.duplicated(["input", "output"]), "duplicate")
    return rows, dropped
