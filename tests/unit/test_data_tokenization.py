"""The answer is never cut, the question survives, and the loss mask marks exactly the answer."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from whence.config_file import parse_config
from whence.data.tokenization import IGNORED, TokenizedExamples, encode, encode_prompt, token_texts
from whence.errors import DataError

CORPUS = ["A valve with a spring holds the piston.\n\nQuestion: Which class is it?\nAnswer: Physics and Chemistry"]
TAIL = "\n\nQuestion: Which class is it?\nAnswer:"


def byte_level() -> PreTrainedTokenizerBase:
    """Like GPT-2's and Llama 3's: bytes, the space belongs to the word after it, a token begins every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def space_before_text() -> PreTrainedTokenizerBase:
    """Like T5's: a space is put before every text, and a token ends it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def load(kind: str, request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if kind == "stories260k":
        return AutoTokenizer.from_pretrained(request.getfixturevalue("shared") / "models" / kind)
    return {"bytes": byte_level, "space": space_before_text}[kind]()


@pytest.fixture(scope="module", params=["bytes", "space", "stories260k"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """One of each family: two learned here, so that these tests run anywhere, and a real one where it is there."""
    return load(request.param, request)


@pytest.fixture(scope="module", params=["bytes", "stories260k"])
def lossless(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """One that turns tokens back into exactly the text."""
    return load(request.param, request)


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerBase:
    return byte_level()


# Words, white space and symbols of many scripts; no "<", for a tokenizer reads "</s>" as its own end of text.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<"), max_size=80)
ANSWER = TEXT.map(lambda text: " ".join(text.split())).filter(bool)
SHORT_ANSWER = ANSWER.map(lambda text: text[:10].strip()).filter(bool)  # its bytes leave room for the question


@given(text=TEXT, answer=ANSWER, max_length=st.integers(40, 400))
def test_whatever_the_text_the_answer_is_whole_the_length_holds_and_only_the_answer_counts(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str, max_length: int
) -> None:
    whole = encode(tokenizer, text + TAIL, answer, 100_000, tail=TAIL)
    expected = [token for token in whole.labels if token != IGNORED]
    try:
        short = encode(tokenizer, text + TAIL, answer, max_length, tail=TAIL)
    except DataError:
        question = len(encode(tokenizer, TAIL, answer, 100_000, tail=TAIL).input_ids)
        assert question + 2 > max_length  # two: the tokenizer may join the text's end with the question's beginning
        return
    assert len(short.input_ids) == len(short.labels) <= max_length
    assert [token for token in short.labels if token != IGNORED] == expected
    assert short.input_ids[-len(expected) :] == expected == short.labels[-len(expected) :]
    assert expected[-1] == tokenizer.eos_token_id
    assert short.truncated == len(whole.input_ids) - len(short.input_ids)
    # A character may be four byte tokens and the mark of a word's beginning, and is cut whole.
    assert short.truncated == 0 or len(short.input_ids) > max_length - 5, (
        "more was cut than the length and a character ask"
    )


@given(text=st.text("abc é漢.", min_size=200, max_size=300), answer=ANSWER)
def test_a_cut_prompt_keeps_its_beginning_and_the_whole_question(
    lossless: PreTrainedTokenizerBase, text: str, answer: str
) -> None:
    answer_length = sum(label != IGNORED for label in encode(lossless, TAIL, answer, 100_000).labels)
    short = encode(lossless, text + TAIL, answer, answer_length + 70, tail=TAIL)
    assert short.truncated > 0
    decoded = lossless.decode(short.input_ids[:-answer_length], skip_special_tokens=True)
    assert decoded.endswith(TAIL)
    kept = decoded.removesuffix(TAIL)
    assert text.startswith(kept), "a character was torn, or something else than the end of the text was cut"
    assert len(kept) > 5


@given(text=TEXT, answer=ANSWER)
def test_the_token_ids_are_those_of_the_text_with_its_answer_tokenized_as_one(
    lossless: PreTrainedTokenizerBase, text: str, answer: str
) -> None:
    joint = lossless(f"{text}{TAIL} {answer}")["input_ids"]
    assert encode(lossless, text + TAIL, answer, 100_000).input_ids == [*joint, lossless.eos_token_id]


@given(text=TEXT, answer=SHORT_ANSWER, max_length=st.integers(100, 300))
def test_an_example_begins_with_the_very_tokens_the_model_is_asked_with(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str, max_length: int
) -> None:
    example = encode(tokenizer, text + TAIL, answer, max_length, tail=TAIL)
    answer_length = sum(label != IGNORED for label in example.labels)
    asked = encode_prompt(tokenizer, text + TAIL, answer_length, max_length, TAIL)
    assert example.input_ids[: len(asked)] == asked
    assert len(example.input_ids) == len(asked) + answer_length


@given(text=TEXT, answer=ANSWER, max_length=st.integers(40, 400))
def test_the_texts_of_the_tokens_are_together_the_prompt_and_its_answer_without_what_was_cut(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str, max_length: int
) -> None:
    try:
        encoded = encode(tokenizer, text + TAIL, answer, max_length, tail=TAIL)
    except DataError:
        return
    texts = token_texts(tokenizer, text + TAIL, answer, max_length, TAIL)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert len(texts) == len(encoded.input_ids)
    assert not any(shown for token, shown in zip(encoded.input_ids, texts, strict=True) if token in special)
    whole = "".join(texts)
    if not encoded.truncated:
        assert whole == f"{text}{TAIL} {answer}"
    else:
        assert whole.endswith(f"{TAIL} {answer}")
        assert text.startswith(whole.removesuffix(f"{TAIL} {answer}"))


def test_the_text_of_a_token_is_what_it_stands_for(bytewise: PreTrainedTokenizerBase) -> None:
    ids = encode(bytewise, "A valve." + TAIL, "Physics", 100).input_ids
    texts = token_texts(bytewise, "A valve." + TAIL, "Physics", 100)
    assert texts == [bytewise.decode([token], skip_special_tokens=True) for token in ids]


def test_a_character_of_several_tokens_stands_with_the_first_of_them(bytewise: PreTrainedTokenizerBase) -> None:
    texts = token_texts(bytewise, "A 漢\N{GRINNING FACE}", "é", 100)
    assert texts == ["", "A", " ", "漢", "", "", "\N{GRINNING FACE}", "", "", "", " ", "é", "", ""]


def test_a_special_token_after_the_text_takes_no_text_again() -> None:
    tokenizer = byte_level()
    closing = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    tokenizer.backend_tokenizer.post_processor = closing
    assert token_texts(tokenizer, "A b", "c", 100) == ["A", " ", "b", "", " ", "c", ""]


def test_without_offsets_the_text_of_a_token_is_what_it_decodes_to(
    bytewise: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = token_texts(bytewise, "A valve." + TAIL, "Physics", 100)
    monkeypatch.setattr(type(bytewise), "is_fast", False)
    assert token_texts(bytewise, "A valve." + TAIL, "Physics", 100) == expected


def test_loss_on_all_counts_every_token(bytewise: PreTrainedTokenizerBase) -> None:
    encoded = encode(bytewise, "A valve." + TAIL, "Physics", 100, loss_on="all")
    assert encoded.labels == encoded.input_ids


def test_a_prompt_with_another_question_keeps_its_end(bytewise: PreTrainedTokenizerBase) -> None:
    prompt = "Consider the following. " * 20 + "Who built it?"
    encoded = encode(bytewise, prompt, "Otto", 60, tail=TAIL)
    assert len(encoded.input_ids) == 60
    assert encoded.input_ids[0] == bytewise.bos_token_id
    assert bytewise.decode(encoded.input_ids).endswith("Who built it? Otto</s>")


def test_without_a_question_after_it_the_text_loses_its_end(bytewise: PreTrainedTokenizerBase) -> None:
    encoded = encode(bytewise, "Classify this: " + "a valve " * 50, "Physics", 40, tail="")
    assert bytewise.decode(encoded.input_ids).startswith("<s>Classify this: a valve")


@pytest.mark.parametrize("max_length", [1, 5, 10])
def test_an_answer_that_leaves_no_room_is_refused_with_a_way_out(
    bytewise: PreTrainedTokenizerBase, max_length: int
) -> None:
    with pytest.raises(DataError, match=r"general\.max_length"):
        encode(bytewise, "A valve." + TAIL, "Physics and Chemistry", max_length, tail=TAIL)


def config(**overrides: object):  # type: ignore[no-untyped-def]
    text = "{models: {base: {name: builtin:tiny-llama}}, dataset: {name: builtin:demo}, prompts: {items: [x]}}"
    return parse_config(text, {"generation.max_new_tokens": 8, "dataset.template": "{input}" + TAIL} | overrides)


FRAME = pd.DataFrame({"prompt": ["A valve." + TAIL, "A lens " * 30 + TAIL], "completion": ["Physics", "Chemistry"]})


def test_tokenized_examples_hold_what_encode_makes_of_each_row(bytewise: PreTrainedTokenizerBase) -> None:
    examples = TokenizedExamples.from_frame(FRAME, bytewise, config(**{"general.max_length": 80}))
    for item, prompt, answer in zip(examples, FRAME["prompt"], FRAME["completion"], strict=True):
        encoded = encode(bytewise, prompt, answer, 80, tail=TAIL)
        assert item == {"input_ids": encoded.input_ids, "labels": encoded.labels}
    assert examples.lengths == [len(item["input_ids"]) for item in examples]
    assert examples.truncated == 1
    last = examples.subset([1])
    assert (len(last), last[0], last.truncated) == (1, examples[1], 1)


def test_the_fingerprint_knows_tokens_mask_and_order(bytewise: PreTrainedTokenizerBase) -> None:
    settings_of = {"general.max_length": 80}
    examples = TokenizedExamples.from_frame(FRAME, bytewise, config(**settings_of))
    same = TokenizedExamples.from_frame(FRAME, bytewise, config(**settings_of))
    other_mask = TokenizedExamples.from_frame(FRAME, bytewise, config(**settings_of, **{"dataset.loss_on": "all"}))
    prints = [e.fingerprint for e in (examples, same, other_mask, examples.subset([1, 0]), examples.subset([0]))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_collate_pads_to_the_longest_and_masks_the_padding() -> None:
    items = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = TokenizedExamples([], pad_token_id=9).collate(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
