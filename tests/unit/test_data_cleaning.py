"""Cleaning makes equal what looks equal, and counts every row it drops."""

import unicodedata

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.config import Cleaning
from whence.data.cleaning import clean_rows, clean_text

ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]))


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("  two\t words \r\n here ", "two words here"),
        ("ﬁne ① ｆｕｌｌ width", "fine 1 full width"),
        ("cafe\u0301", "café"),
        ("no\u00a0break\u2003space", "no break space"),
        ("bell\x07 and nul\x00", "bell and nul"),
        ("a lone \ud800 surrogate", "a lone surrogate"),
        (
            "soft\u00adhyphen, zero\u200bwidth, \ufeffmark, \u202eoverride\u202c",
            "softhyphen, zerowidth, mark, override",
        ),
        ("e\u200b\u0301", "é"),
        ("👩\u200d🔬 keeps its joiner", "👩\u200d🔬 keeps its joiner"),
    ],
)
def test_text_is_normalised(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


def test_case_is_folded_only_on_request() -> None:
    assert clean_text("A Valve") == "A Valve"
    assert clean_text("A VALVE İ", lowercase=True) == clean_text("a valve i\u0307")


@given(text=ANY_TEXT, lowercase=st.booleans())
def test_cleaning_twice_changes_nothing_and_leaves_storable_text(text: str, lowercase: bool) -> None:
    cleaned = clean_text(text, lowercase)
    assert clean_text(cleaned, lowercase) == cleaned
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert not {unicodedata.category(c) for c in cleaned} & {"Cc", "Cs"}
    cleaned.encode("utf-8")


def frame(*rows: tuple[object, object]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["input", "output"], dtype=object)


def test_each_dropped_row_is_counted_by_its_reason() -> None:
    rows = frame(
        ("a valve with a spring", "Physics"),
        (None, "Physics"),
        ("a lens without label", None),
        ("\u200b \t", "Physics"),
        ("a lens of glass", " "),
        ("too short", "Physics"),
        ("a  valve with a spring", "Physics"),
        ("a valve with a spring", "Chemistry"),
    )
    kept, dropped = clean_rows(rows, Cleaning(min_words=3))
    assert list(kept.index) == [0, 7]
    assert list(kept["output"]) == ["Physics", "Chemistry"]
    assert {reason: count for reason, count in dropped.items() if count} == {
        "missing_value": 2, "empty_input": 1, "empty_output": 1, "short_input": 1, "duplicate": 1,
    }  # fmt: skip


def test_duplicates_stay_when_they_are_asked_to() -> None:
    kept, _ = clean_rows(frame(("a valve", "Physics"), ("a valve", "Physics")), Cleaning(drop_duplicates=False))
    assert len(kept) == 2


def test_case_folding_changes_inputs_and_not_answers() -> None:
    kept, dropped = clean_rows(frame(("A Valve", "Physics"), ("a valve", "Physics")), Cleaning(lowercase=True))
    assert kept.values.tolist() == [["a valve", "Physics"]]
    assert dropped["duplicate"] == 1


@given(st.lists(st.tuples(st.none() | ANY_TEXT, st.none() | ANY_TEXT)), st.integers(0, 4))
def test_rows_kept_and_rows_dropped_add_up(rows: list[tuple[object, object]], min_words: int) -> None:
    kept, dropped = clean_rows(frame(*rows), Cleaning(min_words=min_words))
    assert len(kept) + sum(dropped.values()) == len(rows)
    assert not kept.duplicated(["input", "output"]).any()
