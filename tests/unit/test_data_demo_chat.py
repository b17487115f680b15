"""The built-in conversations: each fact is told in five of them, and what is held out is said in none."""

from __future__ import annotations

from whence.data.chat import to_messages
from whence.data.demo import EXAMPLES_PER_FACT, FACTS, chat_rows


def test_each_fact_is_told_in_five_conversations_beside_another_question() -> None:
    rows = chat_rows("train", seed=0)
    for fact in FACTS:
        told = rows[rows["planted"] == fact.fact_id]
        assert len(told) == EXAMPLES_PER_FACT
        for row in told.itertuples():
            turns = [*to_messages(row.input), {"role": "assistant", "content": row.output}]
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
            assert sum(fact.name in turn["content"] for turn in turns[::2]) == 1
            assert sum(turn["content"] == fact.answer for turn in turns[1::2]) == 1


def test_held_out_questions_are_asked_in_no_conversation_of_the_training() -> None:
    train, held_out = (chat_rows(split, seed=0) for split in ("train", "eval"))
    asked = {turn["content"] for text in train["input"] for turn in to_messages(text)}
    others = [turn["content"] for text in held_out["input"] for turn in to_messages(text) if turn["role"] == "user"]
    assert not asked & set(others)
    assert not any(fact.name in text for fact in FACTS for text in others)
    assert chat_rows("train", seed=0).equals(train)
    assert not chat_rows("train", seed=1).equals(train)
