"""Prompts are read from a file or the settings, and a wrong one is named by its number or id."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from whence.config import Config
from whence.data.prompts import Prompt, check_prompts, load_prompts, prompt_changes
from whence.errors import DataError

TEMPLATE = "Text: {input}\nQuestion: Which class?\nAnswer:\n"


def from_items(make_config: Callable[..., Config], items: Any, **settings: Any) -> Config:
    return make_config({"prompts": {"items": items}, "dataset.template": TEMPLATE, **settings})


def from_file(make_config: Callable[..., Config], path: Path, content: str) -> Config:
    path.write_text(content, encoding="utf-8")
    return make_config({"prompts": {"path": str(path)}, "dataset.template": TEMPLATE})


def test_strings_and_objects_become_prompts(make_config: Callable[..., Config], tmp_path: Path) -> None:
    items = [
        "Who built it?",
        {"prompt": "Where?\n", "reference": "Port\n  Ember", "prompt_id": "place", "planted": "halvex"},
        {"input": "a  {valve} ﬁne", "reference": "Physics"},
    ]
    expected = [
        Prompt(prompt_id="prompt-001", prompt="Who built it?"),
        Prompt(prompt_id="place", prompt="Where?\n", reference="Port\n  Ember", planted="halvex"),
        Prompt(
            prompt_id="prompt-003", prompt="Text: a  {valve} ﬁne\nQuestion: Which class?\nAnswer:", reference="Physics"
        ),
    ]
    assert load_prompts(from_items(make_config, items)) == expected
    assert load_prompts(from_file(make_config, tmp_path / "p.json", json.dumps(items))) == expected
    assert load_prompts(from_file(make_config, tmp_path / "p.json", "\ufeff" + json.dumps(items))) == expected


def test_an_input_is_cleaned_like_the_rows_of_the_data(make_config: Callable[..., Config]) -> None:
    config = from_items(make_config, [{"input": "A VALVE"}], **{"dataset.cleaning.lowercase": True})
    assert load_prompts(config)[0].prompt.startswith("Text: a valve\n")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"prompt": "x", "input": "y"}, ["prompt 2", "exactly one", "prompt, input"]),
        ({"reference": "x"}, ["prompt 2", "exactly one", "reference"]),
        ({}, ["prompt 2", "found none"]),
        ({"prompt": "x", "answer": "y"}, ["prompt 2", "answer", "reference"]),
        ({"prompt": 3}, ["prompt 2", "prompt", "string"]),
        ({"input": ["x"]}, ["prompt 2", "input"]),
        ({"prompt": "x", "reference": " "}, ["prompt 2", "reference"]),
        ({"prompt": "x", "prompt_id": ""}, ["prompt 2", "prompt_id"]),
        ({"input": " "}, ["prompt 2", "prompt"]),
        ({"prompt": " \n"}, ["prompt 2", "empty"]),
        ({"prompt": "x", "prompt_id": "prompt-001"}, ["'prompt-001'", "more than once"]),
    ],
)
def test_a_bad_prompt_is_refused_with_its_number(
    make_config: Callable[..., Config], tmp_path: Path, item: Any, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        load_prompts(from_file(make_config, tmp_path / "p.json", json.dumps(["fine", item])))
    assert [word for word in [*words, "p.json"] if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "an empty list"),
        ('{"prompt": "x"}', "expected a JSON list"),
        ("[3]", "prompt 1: expected a string or an object, found int"),
        ('["a",]', "line 1 column"),
        ('["a \\ud800"]', "prompt 1: .*unicode"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(
    make_config: Callable[..., Config], tmp_path: Path, content: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load_prompts(from_file(make_config, tmp_path / "p.json", content))


def test_a_missing_file_is_named_with_its_setting(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.path: .*nowhere\.json does not exist"):
        load_prompts(make_config({"prompts": {"path": str(tmp_path / "nowhere.json")}}))


@pytest.mark.parametrize("reference", [None, "Physics"])
def test_a_prompt_longer_than_the_longest_sequence_is_refused_by_its_id(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast, reference: str | None
) -> None:
    config = make_config({"general.max_length": 40, "generation.max_new_tokens": 8})
    fits = Prompt(prompt_id="short", prompt="A lens bends light.", reference=reference)
    long = Prompt(prompt_id="long", prompt="A lens bends light. " * 20, reference=reference)
    check_prompts([fits], tiny_tokenizer, config)
    with pytest.raises(DataError, match=r"'long' has \d+ tokens and needs 8 more .*general\.max_length is 40"):
        check_prompts([fits, long], tiny_tokenizer, config)


def test_a_reference_longer_than_generated_answers_counts(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = Prompt(prompt_id="wordy", prompt="A lens bends light.", reference="A valve seals the boiler. " * 9)
    with pytest.raises(DataError, match="'wordy'"):
        check_prompts([prompt], tiny_tokenizer, make_config({"general.max_length": 40}))


def test_a_prompt_that_asks_what_the_rows_do_is_shortened_as_they_are_and_counted(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    items = [{"input": "A lens bends light. " * n, "reference": "Physics"} for n in (1, 40)]
    sizes = {"general.max_length": 40, "generation.max_new_tokens": 8, "dataset.template": "{input} Which?"}
    config = make_config(sizes | {"prompts.items": items})
    assert check_prompts(load_prompts(config), tiny_tokenizer, config) == 1
    wordy = make_config(sizes | {"prompts.items": [items[1] | {"reference": "Physics " * 20}]})
    with pytest.raises(DataError, match="'prompt-001': no room for the text of a prompt"):
        check_prompts(load_prompts(wordy), tiny_tokenizer, wordy)


def test_changes_of_prompts_are_counted_as_those_of_rows(make_config: Callable[..., Config]) -> None:
    decomposed = "cafe\u0301"
    items = [{"input": decomposed, "reference": decomposed}, {"input": "plain"}, {"prompt": decomposed}]
    assert prompt_changes(make_config({"prompts.items": items})) == {"brought_to_NFC": 1}


def test_a_key_that_is_given_twice_is_refused(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not valid JSON: the key 'prompt' is given twice"):
        load_prompts(from_file(make_config, tmp_path / "p.json", '[{"prompt": "a", "prompt": "b"}]'))


def test_a_prompt_may_be_a_conversation_and_the_reference_one_of_its_answers(
    make_config: Callable[..., Config],
) -> None:
    talk = [{"role": role, "content": text} for role, text in
            (("user", "Who?"), ("assistant", "Ada."), ("user", "When?"), ("assistant", "In May."))]  # fmt: skip
    asked = "[user] Who?\n[assistant] Ada.\n[user] When?"
    items = [{"messages": talk}, {"messages": talk, "turn": 1}, {"messages": talk[:3]}]
    prompts = load_prompts(make_config({"prompts": {"items": items}}))
    assert [(prompt.prompt, prompt.reference) for prompt in prompts] == [
        (asked, "In May."), ("Who?", "Ada."), (asked, None),
    ]  # fmt: skip
    with pytest.raises(DataError, match="prompt 1: turn is 3, and the assistant answers 2 times"):
        load_prompts(make_config({"prompts": {"items": [{"messages": talk, "turn": 3}]}}))
