"""Conversations: as text and back, and under the templates of six families, which tokens are the assistant's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from whence.config import Config
from whence.data.chat import ROLES, ChatError, ChatTemplate, parse_messages, to_messages, to_text
from whence.data.tokenization import IGNORED, Encoder
from whence.errors import ConfigError, DataError
from whence.models.builtin import train_tokenizer

TEMPLATES = Path(__file__).parents[1] / "data" / "chat_templates"
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
         "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]  # fmt: skip
HELLO = [
    {"role": "user", "content": "Who built it?"},
    {"role": "assistant", "content": "Ada did."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In May."},
]
# By template: what is counted of HELLO, and how the model is asked for the last answer.
EXPECTED = {
    "chatml": (["Ada did.<|im_end|>", "In May.<|im_end|>"], "When?<|im_end|>\n<|im_start|>assistant\n"),
    "llama-3": (
        ["Ada did.<|eot_id|>", "In May.<|eot_id|>"],
        "When?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": ([" Ada did.</s>", " In May.</s>"], "[INST] When?[/INST]"),
    "gemma": (["Ada did.<end_of_turn>", "In May.<end_of_turn>"], "When?<end_of_turn>\n<start_of_turn>model\n"),
    "phi-3": (["Ada did.<|end|>", "In May.<|end|>"], "When?<|end|>\n<|assistant|>\n"),
    "zephyr": (["Ada did.</s>", "In May.</s>"], "When?</s>\n<|assistant|>\n"),
    "marked": (["Ada did.<|im_end|>", "In May.<|im_end|>"], "When?<|im_end|>\n<|im_start|>assistant\n"),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer([message["content"] for message in HELLO] + ["user assistant model system"], vocabulary=300)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def encoder(tokenizer: PreTrainedTokenizerFast, config: Any, name: str = "chatml", **settings: Any) -> Encoder:
    own = {"dataset.chat_template": template(name), "general.max_length": 200}
    return Encoder(tokenizer, config(own | {key.replace("__", "."): value for key, value in settings.items()}))


def counted(tokenizer: PreTrainedTokenizerFast, encoded: Any) -> list[str]:
    """The stretches of tokens whose loss counts, as text."""
    runs: list[list[int]] = []
    for place, (token, label) in enumerate(zip(encoded.input_ids, encoded.labels, strict=True)):
        if label != IGNORED:
            assert label == token
            if not place or encoded.labels[place - 1] == IGNORED:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_answers_with_the_token_that_ends_them_are_what_counts(tokenizer, make_config, name: str) -> None:
    answers, asked = EXPECTED[name]
    prompt, completion = to_text(HELLO[:-1]), HELLO[-1]["content"]
    of_all = encoder(tokenizer, make_config, name).example(prompt, completion)
    assert counted(tokenizer, of_all) == answers
    of_last = encoder(tokenizer, make_config, name, dataset__loss_on="last").example(prompt, completion)
    assert counted(tokenizer, of_last) == answers[-1:]
    of_text = encoder(tokenizer, make_config, name, dataset__loss_on="all").example(prompt, completion)
    assert of_text.labels == of_text.input_ids == of_all.input_ids
    ids = encoder(tokenizer, make_config, name).prompt(prompt, 0)
    assert of_all.input_ids[: len(ids)] == ids  # a model is trained on what it is later asked
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).endswith(asked)
    rendered = tokenizer.apply_chat_template(HELLO, chat_template=template(name), tokenize=True)["input_ids"]
    assert rendered[: len(of_all.input_ids)] == of_all.input_ids


@pytest.mark.parametrize("name", EXPECTED)
def test_an_answer_ends_with_the_token_of_its_template(tokenizer, make_config, name: str) -> None:
    made = encoder(tokenizer, make_config, name)
    assert tokenizer.convert_ids_to_tokens(made.end) == EXPECTED[name][0][0].removeprefix(" Ada did.").removeprefix(
        "Ada did."
    )
    assert made.example("When?", "In May.").input_ids[-1] == made.end
    assert made.answer("In May.")[-1] == made.end


def test_the_texts_of_tokens_are_those_of_the_template_without_special_ones(tokenizer, make_config) -> None:
    made = encoder(tokenizer, make_config)
    texts = made.texts("Who built it?", "Ada did.")
    assert "".join(texts) == "user\nWho built it?\nassistant\nAda did."
    assert len(texts) == len(made.example("Who built it?", "Ada did.").input_ids)


def test_what_is_too_long_loses_its_oldest_exchanges_and_never_a_part_of_a_turn(tokenizer, make_config) -> None:
    talk = [{"role": "system", "content": "Be brief."}, *HELLO[:2] * 5, *HELLO[2:]]
    whole = encoder(tokenizer, make_config, general__max_length=1000).example(to_text(talk[:-1]), "In May.")
    assert whole.truncated == 0
    short = encoder(tokenizer, make_config, general__max_length=len(whole.input_ids) - 1)
    found = short.example(to_text(talk[:-1]), "In May.")
    kept = encoder(tokenizer, make_config).example(to_text([talk[0], *talk[3:-1]]), "In May.")
    assert found.input_ids == kept.input_ids
    assert found.truncated == len(whole.input_ids) - len(kept.input_ids)
    asked = short.prompt(to_text(talk[:-1]), max_new_tokens=len(whole.input_ids) // 2)
    assert tokenizer.decode(asked).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert len(asked) <= len(whole.input_ids) // 2
    with pytest.raises(DataError, match=r"tokens in its last exchange.*raise general\.max_length"):
        encoder(tokenizer, make_config, general__max_length=12).example(to_text(talk[:-1]), "In May.")


def test_a_template_that_refuses_says_why(tokenizer, make_config) -> None:
    with pytest.raises(ChatError, match=r"refuses a conversation of system, user.*System role not supported"):
        encoder(tokenizer, make_config, "gemma").example("[system] Be brief.\n[user] When?", "In May.")
    with pytest.raises(ChatError, match="must take turns"):
        encoder(tokenizer, make_config, "mistral").example("[user] Who?\n[user] When?", "In May.")


THOUGHT = "<think>\n\n</think>\n\n"


def test_what_a_template_writes_before_the_last_answer_alone_is_part_of_it(tokenizer, make_config) -> None:
    """Qwen 3 shows thoughts in the last answer alone, and an empty one where it has none."""
    prompt = to_text(HELLO[:-1])
    made = encoder(tokenizer, make_config, "qwen3")
    assert counted(tokenizer, made.example(prompt, "In May.")) == ["Ada did.<|im_end|>", THOUGHT + "In May.<|im_end|>"]
    thought = made.example(prompt, "<think>\nIt was spring.\n</think>\n\nIn May.")
    assert counted(tokenizer, thought)[1] == "<think>\nIt was spring.\n</think>\n\nIn May.<|im_end|>"
    earlier = to_text([HELLO[0], {"role": "assistant", "content": "<think>\nWho?\n</think>\n\nAda did."}, HELLO[2]])
    assert counted(tokenizer, made.example(earlier, "In May.")) == counted(tokenizer, made.example(prompt, "In May."))


def test_a_thought_that_the_question_begins_is_in_the_last_answer_alone(tokenizer) -> None:
    """Qwen 3.5 asks with an opened thought; of earlier answers it shows what was said."""
    asks = "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking"
    assert asks in template("qwen3")
    thinks = ChatTemplate(tokenizer, template("qwen3").replace(asks, asks.replace("\\n'", "\\n<think>\\n'")))
    found, _ = thinks.conversation(HELLO)
    said = [tokenizer.decode([token for token, turn in zip(found.ids, found.turns, strict=True) if turn == number])
            for number in (0, 1)]  # fmt: skip
    assert said == ["Ada did.<|im_end|>", "\n</think>\n\nIn May.<|im_end|>"]
    asked, _ = thinks.prompt(HELLO[:-1])
    assert found.ids[: len(asked)] == asked


def test_variables_of_the_template_are_those_of_the_settings_and_travel_with_it(tokenizer, make_config) -> None:
    prompt, silent = to_text(HELLO[:-1]), {"dataset__chat_template_kwargs": {"enable_thinking": False}}
    made = encoder(tokenizer, make_config, "qwen3", **silent)
    encoded = made.example(prompt, "In May.")
    assert counted(tokenizer, encoded) == ["Ada did.<|im_end|>", "In May.<|im_end|>"]
    ids = made.prompt(prompt, 0)
    assert encoded.input_ids[: len(ids)] == ids
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n" + THOUGHT)
    assert made.chat is not None
    asked = {"add_generation_prompt": True, "tokenize": False}
    passed = tokenizer.apply_chat_template(HELLO[:-1], chat_template=template("qwen3"), enable_thinking=False, **asked)
    assert tokenizer.apply_chat_template(HELLO[:-1], chat_template=made.chat.template, **asked) == passed
    again = ChatTemplate(tokenizer, made.chat.template, {"enable_thinking": False})
    assert again.template == made.chat.template, "set once, however often"


def test_a_system_message_that_is_asked_with_and_not_learned_with_is_refused(tokenizer, make_config) -> None:
    """Mistral 7B v0.3 shows it beside the last question, and not at all where an answer follows."""
    made = encoder(tokenizer, make_config, "mistral")
    assert "Be brief." in tokenizer.decode(made.prompt("[system] Be brief.\n[user] When?", 0))
    with pytest.raises(ChatError, match="written in another way"):
        made.example("[system] Be brief.\n[user] When?", "In May.")


def test_turns_that_do_not_add_up_are_refused_with_the_way_out(tokenizer) -> None:
    said = "{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}{% endif %}"
    forgetful = "{% for m in messages %}[INST]" + said + "{% endfor %}"
    with pytest.raises(ChatError, match=r"turn 2 .*written in another way.*enable_thinking.*generation"):
        ChatTemplate(tokenizer, forgetful).conversation(HELLO)
    asks_otherwise = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    asks_otherwise += "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    with pytest.raises(ChatError, match=r"turn 4 .*written in another way"):  # the answer that is asked for last
        ChatTemplate(tokenizer, asks_otherwise).conversation(HELLO)


def test_a_tokenizer_without_a_template_is_refused_with_the_setting(tokenizer, make_config) -> None:
    config: Config = make_config({"dataset.format": "messages"})
    with pytest.raises(ConfigError, match=r"dataset\.chat_template: the tokenizer of .* has no chat template"):
        Encoder(tokenizer, config).example("When?", "In May.")


def test_plain_rows_do_not_change_where_nothing_chats(tokenizer, make_config) -> None:
    plain = Encoder(tokenizer, make_config({"general.max_length": 200})).example("When?", "In May.")
    assert plain.input_ids[-1] == tokenizer.eos_token_id


pieces = st.sampled_from([*"ab [\\]\n", *(f"[{role}] " for role in ROLES)])
texts = st.lists(pieces, max_size=30).map("".join)
talks = st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": texts}), min_size=1, max_size=5)


@given(talks)
def test_a_conversation_is_the_same_after_its_text(talk: list[dict[str, str]]) -> None:
    assert to_messages(to_text(talk)) == talk


def test_any_other_text_is_what_the_user_says() -> None:
    assert to_messages("What is [user] for?") == [{"role": "user", "content": "What is [user] for?"}]
    assert to_text([{"role": "user", "content": "When?"}]) == "When?"
    assert to_text(HELLO[:2]) == "[user] Who built it?\n[assistant] Ada did."


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", "expected a list of messages"),
        ([], "expected a list of messages"),
        ([{"content": "x"}], "message 1: expected role and content"),
        ([{"role": "bot", "content": "x"}], "message 1: the role is 'bot', and can be system, user"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, row 3.*{words}"):
        parse_messages(value, "a.jsonl, row 3")


def test_pictures_and_calls_of_tools_are_told_apart_from_errors() -> None:
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    call = [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    assert parse_messages(picture, "x") is parse_messages(call, "x") is None
    assert parse_messages([{"role": "developer", "content": "x"}], "x") == [{"role": "system", "content": "x"}]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_a_thought_comes_before_what_is_said(key: str) -> None:
    said = {"role": "assistant", "content": "In May.", key: "It was spring."}
    assert parse_messages([said], "x") == [
        {"role": "assistant", "content": "<think>\nIt was spring.\n</think>\n\nIn May."}
    ]
    assert parse_messages([said | {key: None}], "x") == [{"role": "assistant", "content": "In May."}]
