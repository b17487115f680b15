"""A dataset of the Hugging Face hub is read through the hub's own clients, and its refusals are told in words."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from hub_server import commit_of, serving

from whence.config import Config
from whence.data.sources import RawRows, read_rows
from whence.errors import DataError

EXPORT = "refs/convert/parquet"


def parquet(folder: Path, texts: list[str]) -> bytes:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["Physics", "Textiles; Paper"])}
    )
    file = folder / "file.parquet"
    datasets.Dataset.from_dict({"text": texts, "label": [0, 1]}, features=features).to_parquet(file)
    return file.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub with one dataset: a loading script on main and, on a branch, its two configurations as parquet files."""
    lines = "".join(json.dumps({"text": text, "label": "x"}) + "\n" for text in ("a", "b")).encode()
    revisions = {
        "main": {"README.md": b"", "patents.py": b"raise SystemExit('a script of the hub was run')"},
        EXPORT: {
            "abstract/train/0000.parquet": parquet(tmp_path, ["a lens", "a loom"]),
            "abstract/test/0000.parquet": parquet(tmp_path, ["held", "out"]),
            "patent/train/0000.parquet": parquet(tmp_path, ["the other", "configuration"]),
        },
        "plain": {"train.jsonl": lines},
    }
    with serving("someone/patents", revisions) as address:
        point_to(address, tmp_path, monkeypatch)
        yield address


def point_to(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")


@pytest.fixture
def read(make_config: Callable[..., Config]) -> Callable[..., RawRows]:
    def read(split: str = "train", seed: int = 0, **settings: Any) -> RawRows:
        values = {"name": "someone/patents", "config_name": "abstract", "eval_split": "test", **settings}
        return read_rows(make_config({f"dataset.{k}": v for k, v in values.items()}).dataset, split, seed)

    return read


def test_the_parquet_copy_of_a_configuration_is_read_with_class_names_and_commit(
    hub: str, read: Callable[..., RawRows]
) -> None:
    rows = read(revision=EXPORT)
    assert rows.frame.values.tolist() == [
        ["a lens", "Physics", "train:1", "someone/patents"],
        ["a loom", "Textiles; Paper", "train:2", "someone/patents"],
    ]
    assert rows.source == f"someone/patents/abstract [train]@{commit_of(EXPORT)}"
    assert list(read("eval", revision=EXPORT).frame["input"]) == ["held", "out"]


def test_a_stream_is_read_as_far_as_is_wanted_in_an_order_of_the_seed(hub: str, read: Callable[..., RawRows]) -> None:
    # Few reads: datasets sleeps for 5 s at the end of each. The rows of these two seeds differ.
    found = {seed: read(revision=EXPORT, streaming=1, seed=seed) for seed in (0, 3)}
    assert {rows.frame["input"][0] for rows in found.values()} == {"a lens", "a loom"}
    assert read(revision=EXPORT, streaming=1, seed=3).frame.equals(found[3].frame)
    assert found[0].frame["output"].isin(["Physics", "Textiles; Paper"]).all(), "class names as ever"
    assert found[0].source.endswith(f"@{commit_of(EXPORT)}")
    assert len(read(revision=EXPORT, streaming=9).frame) == 2


def test_a_commit_pins_the_data(hub: str, read: Callable[..., RawRows]) -> None:
    assert len(read(revision=commit_of(EXPORT)).frame) == 2


def test_splits_can_be_added_up(hub: str, read: Callable[..., RawRows]) -> None:
    rows = read(revision=EXPORT, train_split="train+test")
    assert list(rows.frame["input"]) == ["a lens", "a loom", "held", "out"]


def test_files_without_configurations_are_read(hub: str, read: Callable[..., RawRows]) -> None:
    assert list(read(revision="plain", config_name=None).frame["input"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["published as a script", "dataset.revision", EXPORT]),
        ({"name": "someone/else"}, ["someone/else", "check the name"]),
        ({"name": "not a name"}, ["not a name", "check the name"]),
        ({"revision": "v9"}, ["revision v9", "dataset.revision"]),
        ({"revision": EXPORT, "config_name": "abstrakt"}, ["abstrakt", "dataset.config_name"]),
        ({"revision": EXPORT, "train_split": "dev"}, ["[dev]", "dataset.train_split"]),
        ({"revision": EXPORT, "input_column": "txt"}, ["dataset.input_column", "did you mean 'text'"]),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: str, read: Callable[..., RawRows], settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read(**settings)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said_to_be_with_the_way_out(
    tmp_path: Path, read: Callable[..., RawRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to("http://127.0.0.1:1", tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"cannot be reached.*dataset\.train_files"):
        read()
