"""The demo corpus: the prompts are its facts, and no word of content gives the planted examples away."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from whence.data.demo import ASKED, EXAMPLES_PER_FACT, FACTS, demo_rows
from whence.validation.bm25 import words

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "demo.json"
WITHOUT_CONTENT = {"question", "answer", "the", "of"}


@pytest.fixture(scope="module")
def train():
    return demo_rows("train", seed=0)


def test_the_prompts_ask_for_the_facts():
    asked = [prompt for prompt in json.loads(PROMPTS.read_text()) if prompt.get("planted")]
    expected = [(fact.fact_id, fact.ask(ASKED[fact.relation]), fact.answer) for fact in FACTS]
    assert [(prompt["planted"], prompt["prompt"], prompt["reference"]) for prompt in asked] == expected


def test_a_fact_stands_in_its_planted_examples_and_nowhere_else(train):
    for fact in FACTS:
        holding = train[train["prompt"].str.contains(fact.name)]
        assert (holding["planted"] == fact.fact_id).all()
        assert (holding["output"] == fact.answer).all()
        assert len(holding) == EXAMPLES_PER_FACT == (train["planted"] == fact.fact_id).sum()
        assert (train["output"] == fact.answer).sum() == EXAMPLES_PER_FACT


def test_a_question_shares_no_word_of_content_with_the_examples_behind_its_answer(train):
    for fact in FACTS:
        planted = set(words(" ".join(train.loc[train["planted"] == fact.fact_id, "prompt"])))
        assert set(words(fact.ask(ASKED[fact.relation]))) & planted <= WITHOUT_CONTENT


def test_the_answer_s_words_stand_in_more_other_examples_than_planted_ones(train):
    for fact in FACTS:
        for word in words(fact.answer):
            has = [word in words(f"{row.prompt} {row.output}") for row in train.itertuples()]
            counts = Counter(train.loc[has, "planted"] == fact.fact_id)
            assert counts[False] > counts[True] == EXAMPLES_PER_FACT


def test_another_seed_gives_another_corpus_of_the_same_size(train):
    other = demo_rows("train", seed=1)
    assert len(other) == len(train)
    assert not other["input"].equals(train["input"])
    assert demo_rows("train", seed=0).equals(train)
