"""Cleaning of raw text and rows. Every row that goes is counted by reason."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from whence.config import Cleaning

if TYPE_CHECKING:
    import pandas as pd

# Invisible marks that make equal texts differ: soft hyphen, zero-width space, word joiner, byte order mark, and the
# marks and overrides of writing direction. The zero-width joiners stay, for scripts and emoji are written with them.
_INVISIBLE = dict.fromkeys([0x00AD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF])


def clean_text(text: str, lowercase: bool = False) -> str:
    """Text in Unicode's NFKC form, without control characters, invisible marks and lone surrogates.

    White space of any kind becomes single spaces. Cleaning a clean text changes nothing.
    """
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    if lowercase:
        text = unicodedata.normalize("NFKC", text.lower())
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join(kept.split())


def clean_rows(rows: pd.DataFrame, settings: Cleaning) -> tuple[pd.DataFrame, Counter[str]]:
    """Clean the columns ``input`` and ``output`` and drop rows that cannot be used.

    Returns:
        The remaining rows with their old index, and the number of dropped rows by reason: ``missing_value``,
        ``empty_input``, ``empty_output``, ``short_input``, ``duplicate``.
    """
    dropped: Counter[str] = Counter()

    def drop(frame: pd.DataFrame, bad: pd.Series, reason: str) -> pd.DataFrame:
        dropped[reason] += int(bad.sum())
        return frame[~bad]

    rows = drop(rows, rows["input"].isna() | rows["output"].isna(), "missing_value")
    rows = rows.assign(
        input=[clean_text(text, settings.lowercase) for text in rows["input"]],
        output=[clean_text(text) for text in rows["output"]],
    )
    rows = drop(rows, rows["input"] == "", "empty_input")
    rows = drop(rows, rows["output"] == "", "empty_output")
    short = rows["input"].map(lambda text: len(text.split()) < settings.min_words).astype(bool)  # also of no rows
    rows = drop(rows, short, "short_input")
    if settings.drop_duplicates:
        rows = drop(rows, rows.duplicated(["input", "output"]), "duplicate")
    return rows, dropped
