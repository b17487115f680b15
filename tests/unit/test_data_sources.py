"""Files are read as they are, and what is wrong with one is said with file, line and column."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from whence.config import Config
from whence.data.sources import RawRows, read_rows
from whence.errors import DataError

ROWS = [{"text": "a valve, sealed", "label": "F"}, {"text": 'a "lens"\nof glass', "label": "G"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
        return path
    with opener(path, "wt", encoding="utf-8", newline="") as stream:
        if path.name.lower().removesuffix(".gz").endswith(".csv"):
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture
def read(make_config: Callable[..., Config]) -> Callable[..., RawRows]:
    def read(*files: Path, split: str = "train", **settings: Any) -> RawRows:
        names = [str(file) for file in files]
        values = {"name": None, "train_files": names, "eval_files": names, **settings}
        return read_rows(make_config({f"dataset.{k}": v for k, v in values.items()}).dataset, split, seed=0)

    return read


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a.csv.gz",
        "a.jsonl",
        "a.jsonl.gz",
        "a.parquet",
        "A.CSV",
        "with space & ünicode.jsonl",
        "old.csv/a.jsonl",
        "a.csv.jsonl",
        "a.csv.gz.jsonl.gz",
        "a.jsonl.csv",
        "a.parquet.csv",
        "a.csv.parquet",
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, read: Callable[..., RawRows], name: str) -> None:
    frame = read(write(tmp_path / name, ROWS)).frame
    assert frame[["input", "output"]].values.tolist() == [list(row.values()) for row in ROWS]
    assert frame["source_id"].is_unique
    assert frame["source_id"].str.startswith(Path(name).name).all()


def test_a_folder_and_several_files_are_read_in_order(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    for name in ("b.csv", "a.jsonl", "c.parquet"):
        write(tmp_path / "many" / name, [{"text": f"text of {name}", "label": "x"}])
    (tmp_path / "many" / "README.md").write_text("not data")
    single = write(tmp_path / "single.csv", ROWS)
    frame = read(tmp_path / "many", single).frame
    assert list(frame["input"]) == ["text of a.jsonl", "text of b.csv", "text of c.parquet", *(r["text"] for r in ROWS)]
    assert frame.index.is_unique


def test_a_folder_may_be_called_like_a_file(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    write(tmp_path / "train.parquet" / "part-0.parquet", ROWS)
    assert len(read(tmp_path / "train.parquet").frame) == 2


def test_train_and_evaluation_files_are_kept_apart(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    train, held_out = write(tmp_path / "t.csv", ROWS), write(tmp_path / "e.csv", ROWS[:1])
    assert len(read(train, eval_files=[str(held_out)], split="eval").frame) == 1


def test_labels_that_look_like_missing_values_or_numbers_stay_what_they_are(
    tmp_path: Path, read: Callable[..., RawRows]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,NA\nb,null\nc,007\nd,1.50\ne,\n", encoding="utf-8")
    assert list(read(path).frame["output"]) == ["NA", "null", "007", "1.50", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_whole_numbers_stay_whole_beside_missing_values(
    tmp_path: Path, read: Callable[..., RawRows], name: str
) -> None:
    rows = [{"text": "a", "label": 3}, {"text": "b", "label": None}, {"text": "c", "label": 12}]
    assert list(read(write(tmp_path / name, rows)).frame["output"]) == ["3", None, "12"]


def test_decimals_keep_their_text(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    table = pd.DataFrame({"text": list("abcd"), "label": [0.1, 1e-7, 3, None]})
    expected = ["0.1", "1e-07", "3", None]
    for kind in ("float16", "float32", "float64"):
        values = table["label"].astype(kind)
        table.assign(label=values).to_parquet(tmp_path / f"{kind}.parquet")
        written = [str(values[0]), str(values[1]), "3", None]
        assert list(read(tmp_path / f"{kind}.parquet").frame["output"]) == written
        assert kind == "float16" or written == expected
    lines = [f'{{"text": "a", "label": {number}}}\n' for number in ("0.10", "1e3", "12345678901234567.5", "3", "-0.0")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert list(read(tmp_path / "a.jsonl").frame["output"]) == ["0.10", "1e3", "12345678901234567.5", "3", "-0.0"]
    (tmp_path / "a.csv").write_text("text,label\na,010\nb,1.0\n")
    assert list(read(tmp_path / "a.csv").frame["output"]) == ["010", "1.0"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    path = tmp_path / "excel.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert len(read(path).frame) == 1


def test_texts_longer_than_pythons_csv_limit_are_read(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    frame = read(write(tmp_path / "a.csv", [{"text": "word " * 60_000, "label": "F"}])).frame
    assert len(frame["input"][0]) == 300_000


def test_the_id_column_names_the_rows(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    rows = [{"text": "a", "label": "x", "id": "US1"}, {"text": "b", "label": "x", "id": None}]
    assert list(read(write(tmp_path / "a.jsonl", rows), id_column="id").frame["source_id"]) == ["US1", "a.jsonl:2"]


def test_a_column_says_where_rows_are_from_and_else_it_is_their_file(
    tmp_path: Path, read: Callable[..., RawRows]
) -> None:
    rows = [{"text": "a", "label": "x", "from": "books"}, {"text": "b", "label": "x", "from": None}]
    path = write(tmp_path / "a.jsonl", rows)
    assert list(read(path, source_column="from").frame["source"]) == ["books", "a.jsonl"]
    assert list(read(path).frame["source"]) == ["a.jsonl", "a.jsonl"]
    with pytest.raises(DataError, match=r"dataset\.source_column: .* has no column 'form'.*did you mean 'from'"):
        read(path, source_column="form")


def test_label_names_replace_values(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    names = {"F": "Mechanical Engineering", "G": "Physics"}
    frame = read(write(tmp_path / "a.csv", ROWS), label_names=names).frame
    assert list(frame["output"]) == ["Mechanical Engineering", "Physics"]


def test_a_column_with_the_right_answers_tells_which_labels_are_wrong(
    tmp_path: Path, read: Callable[..., RawRows]
) -> None:
    rows = [{**row, "right": right} for row, right in zip(ROWS, ("F ", "H"), strict=True)]
    names = {"F": "Mechanics", "G": "Physics", "H": "Electricity"}
    file = write(tmp_path / "a.csv", rows)
    frame = read(file, truth_column="right", label_names=names).frame
    assert frame["flipped"].tolist() == [False, True]
    assert frame["true_output"].tolist() == ["Mechanics", "Electricity"]
    assert frame["output"].tolist() == ["Mechanics", "Physics"], "what is trained on stays as it is given"
    assert "flipped" not in read(file, split="eval", truth_column="right", label_names=names).frame
    assert "flipped" not in read(file).frame


def test_a_row_without_the_right_answer_is_refused(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    rows = [{**row, "right": right} for row, right in zip(ROWS, ("F", None), strict=True)]
    with pytest.raises(DataError, match=r"dataset\.truth_column: .*row 2 has no right answer"):
        read(write(tmp_path / "a.jsonl", rows), truth_column="right")
    with pytest.raises(DataError, match=r"dataset\.truth_column: .*has no column 'rihgt'.*did you mean 'right'"):
        read(write(tmp_path / "b.jsonl", rows), truth_column="rihgt")


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "settings", "words"),
    [
        ("a.csv", "text,labels\na,b\n", {}, ["dataset.output_column", "'label'", "text, labels", "mean 'labels'"]),
        ("a.csv", "text,label\na,b\n", {"id_column": "nr"}, ["dataset.id_column", "'nr'", "text, label"]),
        ("a.jsonl", '{"txt": "a", "label": 1}\n', {}, ["dataset.input_column", "mean 'txt'"]),
        ("a.csv", "", {}, ["a.csv", "empty"]),
        ("a.csv", "text,label\n", {}, ["a.csv", "no rows"]),
        ("a.jsonl", "\n\n", {}, ["a.jsonl", "empty"]),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": \n', {}, ["a.jsonl", "line 3", "JSON"]),
        ("a.jsonl", '["a", "b"]\n', {}, ["a.jsonl", "line 1", "object", "list"]),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', {}, ["row 1", "'label'", "list"]),
        ("a.csv", "text,label\na,b\nc,d,e\n", {}, ["a.csv", "line 3", "3 fields", "2"]),
        ("a.csv", 'text,label\na,"b\n', {}, ["a.csv", "line 2", "csv"]),
        ("a.csv", b"text,label\n\xe9,b\n", {}, ["a.csv", "UTF-8", "convert"]),
        ("a.parquet", "not parquet", {}, ["a.parquet", "cannot be read"]),
        ("a.jsonl.gz", "not gzip", {}, ["a.jsonl.gz", "cannot be read"]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-20], {}, ["a.jsonl.gz", "cannot be read"]),
        ("a.xlsx", "x", {}, ["a.xlsx", "unknown kind", ".parquet"]),
        ("a.csv", "text,label\na,Z\n", {"label_names": {"F": "f"}}, ["dataset.label_names", "row 2", "'Z'", "F"]),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_the_place_and_the_reason(
    tmp_path: Path,
    read: Callable[..., RawRows],
    name: str,
    content: str | bytes,
    settings: dict[str, Any],
    words: list[str],
) -> None:
    with pytest.raises(DataError) as caught:
        read(text(tmp_path / name, content), **settings)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("name", ["missing.csv", "missing"])
def test_a_file_or_folder_that_is_not_there_is_named_with_its_setting(
    tmp_path: Path, read: Callable[..., RawRows], name: str
) -> None:
    with pytest.raises(DataError, match=rf"dataset\.eval_files: .*{name} does not exist"):
        read(tmp_path / name, split="eval")


def test_a_folder_without_data_is_refused(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    text(tmp_path / "README.md", "nothing here")
    with pytest.raises(DataError, match=r"has no \.csv"):
        read(tmp_path)


# The hub library reads a local folder with the same code as a repository on the hub.


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset laid out like the hub's parquet branch: one folder a configuration, class labels in the schema."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    labels = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["Physics", "Paper"])}
    )
    for part, texts in (("abstract", ["a lens", "a loom", "withheld"]), ("patent", ["other"] * 3)):
        for split in ("train", "validation"):
            data = datasets.Dataset.from_dict({"text": texts, "label": [0, 1, -1]}, features=labels)
            file = tmp_path / "repository" / part / split / "0000.parquet"
            file.parent.mkdir(parents=True)
            data.to_parquet(file)
    return tmp_path / "repository"


def test_class_labels_become_their_names_and_a_withheld_one_is_missing(
    repository: Path, read: Callable[..., RawRows]
) -> None:
    rows = read(name=str(repository), config_name="abstract", train_files=[], eval_files=[])
    assert list(rows.frame["input"]) == ["a lens", "a loom", "withheld"]
    assert list(rows.frame["output"]) == ["Physics", "Paper", None]
    assert list(rows.frame["source_id"]) == ["train:1", "train:2", "train:3"]


def test_decimals_of_the_hub_keep_their_text(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("float32")})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0.1, None, 2.0]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    rows = read(name=str(tmp_path), train_files=[], eval_files=[])
    assert list(rows.frame["output"]) == ["0.1", None, "2"]


def test_label_names_win_over_class_names(repository: Path, read: Callable[..., RawRows]) -> None:
    settings = {"name": str(repository), "config_name": "abstract", "train_files": [], "eval_files": []}
    names = {"0": "zero", "1": "one", "-1": "none"}
    assert list(read(**settings, label_names=names).frame["output"]) == ["zero", "one", "none"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"train_split": "tran"}, ["[tran]", "dataset.train_split"]),
        ({"config_name": "abstracts"}, ["abstracts", "dataset.config_name"]),
        ({"output_column": "labels"}, ["dataset.output_column", "did you mean 'label'"]),
    ],
)
def test_a_wrong_split_configuration_or_column_of_a_hub_dataset_is_named(
    repository: Path, read: Callable[..., RawRows], wrong: dict[str, str], words: list[str]
) -> None:
    settings = {"name": str(repository), "config_name": "abstract", "train_files": [], "eval_files": [], **wrong}
    with pytest.raises(DataError) as caught:
        read(**settings)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


TALK = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Ada."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In May."},
]


def test_the_columns_tell_the_format_unless_it_is_set(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    cases: dict[str, dict[str, Any]] = {
        "question_answer": {"text": "a", "label": "b", "messages": TALK},
        "messages": {"messages": TALK, "prompt": "x", "completion": "y"},
        "prompt_completion": {"prompt": "x", "completion": "y", "text": "z"},
        "text": {"text": "a"},
    }
    for name, row in cases.items():
        assert read(write(tmp_path / f"{name}.jsonl", [row])).format == name
    path = write(tmp_path / "set.jsonl", [cases["question_answer"]])
    assert read(path, format="messages").frame["output"].tolist() == ["In May."]
    with pytest.raises(DataError, match=r"dataset\.format: .* has no column 'messages'"):
        read(write(tmp_path / "none.jsonl", [{"text": "a", "label": "b"}]), format="messages")


def test_a_conversation_is_what_was_said_before_the_last_answer_and_that(
    tmp_path: Path, read: Callable[..., RawRows]
) -> None:
    picture = [{"role": "user", "content": [{"type": "image"}]}, TALK[1]]
    talks = [TALK, [*TALK, TALK[0]], TALK[:1], picture]
    rows = read(write(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks]))
    before = "[user] Who?\n[assistant] Ada.\n[user] When?"
    assert rows.frame["input"].tolist() == [before, before]
    assert rows.frame["output"].tolist() == ["In May.", "In May."]
    assert rows.dropped == {"without_answer": 1, "not_text_alone": 1}
    assert rows.rows_read == 4
    pair = read(write(tmp_path / "pair.jsonl", [{"prompt": TALK[:3], "completion": TALK[3:]}]))
    assert (pair.format, pair.frame["input"].tolist()) == ("messages", [before])
    assert (rows.last_alone, pair.last_alone) == (False, True)
    pd.DataFrame({"messages": [TALK]}).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").frame["input"].tolist() == [before]
    with pytest.raises(DataError, match="row 1, message 2: the role is 'bot'"):
        read(write(tmp_path / "bot.jsonl", [{"messages": [TALK[0], {"role": "bot", "content": "x"}]}]))


def test_files_of_two_formats_are_refused(tmp_path: Path, read: Callable[..., RawRows]) -> None:
    one = write(tmp_path / "a.jsonl", [{"text": "a", "label": "b"}])
    other = write(tmp_path / "b.jsonl", [{"messages": TALK}])
    with pytest.raises(DataError, match=r"dataset\.format: .*a\.jsonl has rows of question_answer, .* of messages"):
        read(one, train_files=[str(one), str(other)])
