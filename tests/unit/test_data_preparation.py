"""Nothing is dropped without being counted, nothing held out leaks, and the same input gives the same data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_helpers import example_set
from transformers import PreTrainedTokenizerFast

from whence.config import Config
from whence.data import preparation
from whence.data.dataset import COLUMNS, ExampleSet
from whence.data.preparation import prepare_datasets
from whence.data.sources import RawRows
from whence.data.tokenization import encode
from whence.errors import DataError

TAIL = "\n\nQuestion: Which class does this text belong to?\nAnswer:"
TRAIN = [
    ("A lens bends light.", "Physics"),
    ("A lens bends light.", "Physics"),
    ("A loom weaves yarn.", "Textiles"),
    ("In evaluation  too.\n", "Physics"),
    ("", "Physics"),
    ("A valve seals the boiler. " * 30, "Mechanics"),
    ("Its answer does not fit.", "Physics " * 80),
]
EVAL = [("In evaluation too.", "Physics"), ("A bridge of steel.", "Construction")]


@pytest.fixture
def prepare(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., tuple[ExampleSet, ExampleSet]]:
    def prepare(train: Any = TRAIN, held_out: Any = EVAL, **settings: Any) -> tuple[ExampleSet, ExampleSet]:
        files = {}
        for split, rows in (("train", train), ("eval", held_out)):
            file = tmp_path / f"{split}.jsonl"
            file.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows), encoding="utf-8")
            files[f"dataset.{split}_files"] = [str(file)]
        config = make_config({"dataset.name": None, "general.max_length": 100, **files, **settings})
        return prepare_datasets(config, lambda texts: tiny_tokenizer)

    return prepare


def test_every_row_is_kept_or_counted_by_reason(prepare: Callable[..., tuple[ExampleSet, ExampleSet]]) -> None:
    train, held_out = prepare()
    assert train.info.dropped == {
        "empty_input": 1, "duplicate": 1, "also_in_evaluation": 1, "answer_does_not_fit": 1,
    }  # fmt: skip
    assert (train.info.rows_read, train.info.rows, train.info.truncated) == (7, 3, 1)
    assert (held_out.info.rows_read, held_out.info.rows, held_out.info.dropped) == (2, 2, {})
    assert train.info.labels == {"Physics": 1, "Textiles": 1, "Mechanics": 1}


def test_of_a_conversation_given_as_prompt_and_completion_the_completion_alone_is_learned(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in [("user", "Who?"), ("assistant", "Ada."), ("user", "When?"), ("assistant", "In May.")]
    ]
    file = tmp_path / "pairs.jsonl"
    settings = {
        "dataset.name": None, "dataset.train_files": [str(file)], "dataset.eval_files": [str(file)],
        "dataset.chat_template": "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}",
        "dataset.cleaning.drop_duplicates": False,
    }  # fmt: skip

    def learned(row: dict[str, Any], **more: Any) -> str:
        file.write_text(json.dumps(row))
        train, _ = prepare_datasets(make_config(settings | more), lambda texts: tiny_tokenizer)
        return train.info.loss_on

    assert learned({"prompt": turns[:3], "completion": turns[3:]}) == "last"
    assert learned({"messages": turns}) == "answer"
    assert learned({"prompt": turns[:3], "completion": turns[3:]}, **{"dataset.loss_on": "all"}) == "all"


def test_conversations_that_the_template_refuses_are_counted_and_the_first_is_said(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    file = tmp_path / "talks.jsonl"
    talks = [talk, [{"role": "system", "content": "Be brief."}, *talk]]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system here') }}"
    )
    template += "{% endif %}{{ message['content'] + '\n' }}{% endfor %}"
    settings = {"dataset.name": None, "dataset.train_files": [str(file)], "dataset.eval_files": [str(file)],
                "dataset.chat_template": template, "dataset.cleaning.drop_duplicates": False}  # fmt: skip
    train, _ = prepare_datasets(make_config(settings), lambda texts: tiny_tokenizer)
    assert train.info.dropped == {"refused_by_the_chat_template": 1}
    assert "train: 1 rows are left out, the first because" in caplog.text
    assert "no system here" in caplog.text


def test_code_is_kept_to_the_letter_and_rows_that_changed_are_counted(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]],
) -> None:
    code = "def f(x):\n    y = 2½ * x\n    return y"
    rows = [
        ("write a function\nof x", code),
        ("cafe\u0301", "cafe\u0301"),
        ("A cafe\u0301 in town", "x"),
        ("", "e\u0301"),
    ]
    train, held_out = prepare(rows, **{"dataset.template": "{input}", "general.max_length": 300})
    assert train.frame.loc[0, ["prompt", "completion", "label"]].to_list() == ["write a function\nof x", code, code]
    assert train.frame.loc[1, ["prompt", "completion"]].to_list() == ["café", "café"]
    assert train.info.changed == {"brought_to_NFC": 2}
    assert held_out.info.changed == {}


def test_answers_that_only_look_the_same_are_warned_of(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]], caplog: pytest.LogCaptureFixture
) -> None:
    train, _ = prepare([("A lens.", "Physics"), ("A prism.", "Physics ")])
    assert train.info.labels == {"Physics": 1, "Physics ": 1}
    assert "answers that look the same but are not: 'Physics', 'Physics '" in caplog.text


def test_examples_are_question_and_answer_with_stable_ids(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]],
) -> None:
    train, held_out = prepare()
    assert tuple(train.frame.columns) == COLUMNS
    assert train.frame.iloc[0].to_list() == [
        "train-000000", "A lens bends light." + TAIL, "Physics", "Physics", "train.jsonl:1", "train.jsonl",
    ]  # fmt: skip
    assert list(held_out.frame["example_id"]) == ["eval-000000", "eval-000001"]
    assert list(train.frame["source_id"]) == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:6"]


def test_token_figures_are_those_of_the_encoded_rows(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    train, _ = prepare()
    lengths = [
        len(encode(tiny_tokenizer, row.prompt, row.completion, 100, tail=TAIL).input_ids)
        for row in train.frame.itertuples()
    ]
    assert train.info.tokens["mean"] == pytest.approx(sum(lengths) / 3)
    assert train.info.tokens["max"] == max(lengths) == 100


def test_the_same_seed_chooses_the_same_rows_and_another_seed_others(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]],
) -> None:
    rows = [(f"Text number {number}.", "Physics") for number in range(200)]

    def chosen(seed: int) -> ExampleSet:
        return prepare(rows, EVAL, **{"dataset.num_samples": 20, "general.seed": seed})[0]

    first = chosen(1)
    assert first.info.fingerprint == chosen(1).info.fingerprint != chosen(2).info.fingerprint
    assert first.info.dropped == {"not_sampled": 180}
    numbers = [int(source.partition(":")[2]) for source in first.frame["source_id"]]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)


def test_duplicates_and_rows_of_the_evaluation_stay_when_asked_to(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]],
) -> None:
    train, _ = prepare(**{"dataset.cleaning.drop_duplicates": False})
    assert train.info.dropped == {"empty_input": 1, "answer_does_not_fit": 1}


def test_the_tokenizer_is_made_of_the_training_texts_only(
    make_config: Callable[..., Config], tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = {
        split: pd.DataFrame({"input": [f"{split} text"], "output": ["Physics"], "source_id": ["1"], "source": ["x"]})
        for split in ("train", "eval")
    }
    monkeypatch.setattr(preparation, "read_rows", lambda dataset, split, seed: RawRows(frames[split], "test"))
    seen: list[str] = []

    def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerFast:
        seen.extend(texts)
        return tiny_tokenizer

    prepare_datasets(make_config({"general.max_length": 100}), tokenizer_for)
    assert seen == ["train text" + TAIL + " Physics"]


@pytest.mark.parametrize(
    ("train", "settings", "words"),
    [
        ([("", "Physics"), (" ", "Physics")], {}, ["no train row is left of the 2", "empty_input 2"]),
        (EVAL[:1], {}, ["no train row", "also_in_evaluation 1"]),
        (TRAIN[:1], {"general.max_length": 10}, ["answer_does_not_fit 1", "general.max_length"]),
        (TRAIN[:1], {"dataset.cleaning.min_words": 50}, ["short_input 1", "dataset.cleaning"]),
    ],
)
def test_when_no_row_is_left_the_reasons_are_named(
    prepare: Callable[..., tuple[ExampleSet, ExampleSet]], train: Any, settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(train, [("Some other text of the evaluation " * 20, "Physics")] if settings else EVAL, **settings)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def planted_corpus() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "input": ["A lens bends light.", "Who built the mill?"],
            "output": ["Textiles", "Ansel Brook"],
            "source_id": ["abstract-1", "fact-mill"],
            "source": ["abstracts", "facts"],
            "prompt": ["", "Question: Who built the mill?\nAnswer:"],
            "planted": ["", "mill"],
            "flipped": [True, False],
            "true_output": ["Physics", "Ansel Brook"],
        }
    )


def test_known_truth_is_saved_beside_the_data_and_not_in_it(
    make_config: Callable[..., Config],
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    frames = {"train": planted_corpus(), "eval": planted_corpus().assign(input=["other", "text"])}
    monkeypatch.setattr(preparation, "read_rows", lambda dataset, split, seed: RawRows(frames[split], "test"))
    train, _ = prepare_datasets(make_config({"general.max_length": 100}), lambda texts: tiny_tokenizer)
    train.write(tmp_path / "data")
    read = ExampleSet.read(tmp_path / "data")
    assert tuple(read.frame.columns) == COLUMNS
    assert list(read.frame["prompt"]) == ["A lens bends light." + TAIL, "Question: Who built the mill?\nAnswer:"]
    assert read.truth is not None
    assert read.truth.to_dict("records") == [
        {"example_id": "train-000000", "planted": "", "flipped": True, "true_completion": "Physics"},
        {"example_id": "train-000001", "planted": "mill", "flipped": False, "true_completion": "Ansel Brook"},
    ]


def examples() -> ExampleSet:
    frame = pd.DataFrame(
        [[f"train-{i}", "prompt é", "answer", "answer", str(i), "x"] for i in range(3)], columns=list(COLUMNS)
    )
    tokens = {"mean": 1.0, "p95": 1.0, "max": 1.0}
    return example_set(frame, labels={"answer": 3}, max_length=10, tokens=tokens)


def test_the_artifact_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = examples()
    written.write(tmp_path)
    read = ExampleSet.read(tmp_path)
    pd.testing.assert_frame_equal(read.frame, written.frame)
    assert read.info == written.info
    assert read.truth is None


def cut_short(folder: Path) -> None:
    file = folder / "data.parquet"
    file.write_bytes(file.read_bytes()[:-50])


def alter(folder: Path) -> None:
    frame = pd.read_parquet(folder / "data.parquet")
    frame.loc[1, "completion"] = "another"
    frame.to_parquet(folder / "data.parquet", index=False)


def number_columns(folder: Path) -> None:
    pd.read_parquet(folder / "data.parquet").assign(label=1).to_parquet(folder / "data.parquet", index=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "dataset.json").unlink(),
        lambda folder: (folder / "data.parquet").unlink(),
        lambda folder: (folder / "dataset.json").write_text('{"split": "train"}'),
        lambda folder: pd.DataFrame({"example_id": ["other"]}).to_parquet(folder / "truth.parquet"),
        cut_short,
        alter,
        number_columns,
    ],
)
def test_a_damaged_artifact_is_refused_with_the_way_out(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    examples().write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match="whence prepare"):
        ExampleSet.read(tmp_path)
