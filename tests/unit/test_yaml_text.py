"""YAML is read as it is written: no word becomes a truth value, no key is lost, and what is written reads back."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from whence.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    "text", ["no", "yes", "On", "off", "y", "010", "0123456", "-007", "2024-01-31", "1:30", "1_000", "="]
)
def test_what_yaml_1_1_would_turn_into_something_else_is_text(text: str) -> None:
    assert read_yaml(text) == text
    assert read_yaml(f"{{{text}: {text}}}") == {text: text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1E3", 1000.0), (".5", 0.5), ("-1.", -1.0), ("0", 0), ("-12", -12), ("0x1F", 31), ("0o17", 15),
     (".inf", math.inf), ("true", True), ("False", False), ("null", None), ("~", None), ("", None)],
)  # fmt: skip
def test_values_of_the_core_schema(text: str, value: Any) -> None:
    read = read_yaml(text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  seed: 1\nother: 2\ntraining:\n  seed: 2\n", ["'training'", "lines 1 and 4"]),
        ("a:\n  - b: 1\n    c: 2\n    'b': 3\n", ["'b'", "lines 2 and 4"]),
        ("{a: 1, b: {c: 1, c: 2}}", ["'c'", "line 1;"]),
        ("{1: a, 0x1: b}", ["'0x1'"]),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(text: str, words: list[str]) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        read_yaml(text)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_lines_can_be_shared_and_changed_in_one_place() -> None:
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text", ["a: [1", "a: *b", "a: 1\n---\nb: 2", "!!python/object/apply:os.system [ls]", "!!int many", "!!timestamp x",
             "9" * 5000, "a: \ud800", "[" * 5000 + "]" * 5000, "[a]: b", "&a [*a]: 1"]
)  # fmt: skip
def test_what_cannot_be_read_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)


LOOKALIKES = st.text("0123456789.eE+-xonysf~:_<=", min_size=1, max_size=6)
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\x85\u2028\r\n\t \ufeff'\":#-a\x00") | LOOKALIKES
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@given(st.recursive(SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXT, part, max_size=4)))
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert read_yaml(write_yaml(value)) == value


@given(LOOKALIKES)
def test_text_stays_text_for_readers_of_yaml_1_1(text: str) -> None:
    assert yaml.safe_load(write_yaml([text])) == [text]
