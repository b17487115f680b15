"""Cleaning changes what it is asked to, and counts every row it changes or drops."""

import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.config import Cleaning
from whence.data.cleaning import CHANGES, clean_rows, clean_text, look

ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]))
UNTOUCHED = Cleaning()
SETTINGS = st.builds(
    Cleaning,
    unicode=st.sampled_from(["NFC", "NFKC", None]),
    remove_invisible=st.booleans(),
    single_spaces=st.booleans(),
    lowercase=st.booleans(),
)
CODE = "def f(x):\r\n\tif x:  # ½ m², ﬁne\n        return x \n\n"


def cleaned(text: str, settings: Cleaning = UNTOUCHED) -> tuple[str, tuple[str, ...]]:
    return clean_text(text, settings, is_input=True)


@pytest.mark.parametrize(
    "text",
    [CODE, "  two\t words ", "2½ m² ①", "no\u00a0break", "bell\x07 nul\x00", "soft\u00adhyphen \ufeff \u202e", "\x85"],
)
def test_text_is_left_as_it_is(text: str) -> None:
    assert cleaned(text) == (text, ())


@pytest.mark.parametrize(
    ("text", "settings", "clean", "changes"),
    [
        ("cafe\u0301", {}, "café", ("brought_to_NFC",)),
        ("cafe\u0301", {"unicode": None}, "cafe\u0301", ()),
        ("ﬁne ① ½ ｆｕｌｌ", {"unicode": "NFKC"}, "fine 1 1⁄2 full", ("brought_to_NFKC",)),
        ("a lone \ud800 surrogate", {}, "a lone \ufffd surrogate", ("with_half_characters_replaced",)),
        (
            "soft\u00adhyphen, zero\u200bwidth, \ufeffmark, \u202eoverride\u202c, bell\x07",
            {"remove_invisible": True},
            "softhyphen, zerowidth, mark, override, bell",
            ("without_invisible_characters",),
        ),
        ("e\u200b\u0301", {"remove_invisible": True}, "é", ("without_invisible_characters", "brought_to_NFC")),
        ("👩\u200d🔬 keeps its joiner", {"remove_invisible": True}, "👩\u200d🔬 keeps its joiner", ()),
        (
            CODE,
            {"single_spaces": True, "remove_invisible": True},
            "def f(x):\r\n\tif x: # ½ m², ﬁne\n        return x\n\n",
            ("with_single_spaces",),
        ),
        ("A Valve", {"lowercase": True}, "a valve", ("lowercased",)),
        ("a valve", {"lowercase": True}, "a valve", ()),
    ],
)
def test_a_change_is_made_where_its_setting_asks_for_it_and_named(
    text: str, settings: dict[str, Any], clean: str, changes: tuple[str, ...]
) -> None:
    assert cleaned(text, Cleaning(**settings)) == (clean, changes)


@given(text=ANY_TEXT, settings=SETTINGS)
def test_cleaning_twice_changes_nothing_and_leaves_storable_text(text: str, settings: Cleaning) -> None:
    once, _ = cleaned(text, settings)
    assert cleaned(once, settings) == (once, ())
    once.encode("utf-8")


@given(text=st.text("ab \t\n\r"), settings=SETTINGS)
def test_lines_and_their_indentation_stay_whatever_the_settings(text: str, settings: Cleaning) -> None:
    def lines(of: str) -> list[str]:
        return [line[: len(line) - len(line.lstrip(" \t"))] if line.strip() else "" for line in re.split(r"[\r\n]", of)]

    assert lines(cleaned(text, settings)[0]) == lines(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a  lens\n", " a lens"), ("ﬁne", "fine"), ("soft\u00adhyphen", "softhyphen"), ("cafe\u0301", "café")],
)
def test_texts_that_look_the_same_are_told(one: str, other: str) -> None:
    assert look(one) == look(other) != look(f"{other}s")


def frame(*rows: tuple[object, object]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["input", "output"], dtype=object)


def test_each_dropped_row_is_counted_by_its_reason() -> None:
    rows = frame(
        ("a valve with a spring", "Physics"),
        (None, "Physics"),
        ("a lens without label", None),
        ("\u200b \t", "Physics"),
        ("a lens of glass", " \n"),
        ("too short", "Physics"),
        ("a valve with a spring", "Physics"),
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
    assert kept.values.tolist() == [["a valve", "Physics", ("lowercased",)]]
    assert dropped["duplicate"] == 1


def test_a_row_is_counted_once_for_each_kind_of_change() -> None:
    kept, _ = clean_rows(frame(("Cafe\u0301", "cafe\u0301"), ("plain", "Plain")), Cleaning(lowercase=True))
    assert list(kept[CHANGES]) == [("lowercased", "brought_to_NFC"), ()]


@given(st.lists(st.tuples(st.none() | ANY_TEXT, st.none() | ANY_TEXT)), st.integers(0, 4))
def test_rows_kept_and_rows_dropped_add_up(rows: list[tuple[object, object]], min_words: int) -> None:
    kept, dropped = clean_rows(frame(*rows), Cleaning(min_words=min_words))
    assert len(kept) + sum(dropped.values()) == len(rows)
    assert not kept.duplicated(["input", "output"]).any()
