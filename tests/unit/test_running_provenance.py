"""What a model comes from and is judged by: what counts as a change, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import one_example

from whence.config import Config
from whence.running.provenance import changes, judged_by, model_digest, provenance

MakeConfig = Callable[..., Config]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "reference.json").write_text('{"name": "m", "revision": "1"}')
    return folder


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("training.learning_rate", 0.5, "training.learning_rate: 2e-05, now 0.5"),
        ("general.seed", 7, "general.seed: 0, now 7"),
        ("general.max_length", 32, "general.max_length: 64, now 32"),
        ("dataset.loss_on", "all", 'dataset.loss_on: "answer", now "all"'),
    ],
)
def test_a_setting_that_decides_a_model_is_a_change_and_named(
    make_config: MakeConfig, base: Path, tmp_path: Path, setting: str, value: Any, said: str
) -> None:
    data = one_example(tmp_path / "data")
    then = provenance(make_config(), base, data)
    now = provenance(make_config({setting: value}), base, data)
    assert changes(now, then) == [said]
    assert changes(now, now) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("general.work_dir", "elsewhere"),
        ("general.parallel_tasks", 4),
        ("training.save_steps", 7),
        ("training.eval_steps", 7),
        ("scores.top_k", 3),
        ("retraining.min_gain", 0.5),
        ("tracking.experiment", "other"),
    ],
)
def test_where_how_often_and_what_comes_afterwards_is_none(
    make_config: MakeConfig, base: Path, tmp_path: Path, setting: str, value: Any
) -> None:
    data = one_example(tmp_path / "data")
    then = provenance(make_config(), base, data)
    assert changes(provenance(make_config({setting: value}), base, data), then) == []


def test_other_data_and_another_base_model_are(make_config: MakeConfig, base: Path, tmp_path: Path) -> None:
    then = provenance(make_config(), base, one_example(tmp_path / "data"))
    (base / "reference.json").write_text('{"name": "m", "revision": "2"}')
    now = provenance(make_config(), base, one_example(tmp_path / "other", "Textiles"))
    assert [line.partition(":")[0] for line in changes(now, then)] == ["training data", "base model"]


def test_a_version_of_unknown_origin_is_never_the_same(make_config: MakeConfig, base: Path, tmp_path: Path) -> None:
    now = provenance(make_config(), base, one_example(tmp_path / "data"))
    assert changes(now, {})[-1] == "settings: unknown"
    assert len(changes(now, {})) == 3


def test_a_model_is_its_weights_and_tokenizer_and_not_how_long_it_took(tmp_path: Path) -> None:
    for name, seconds in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "lineage").mkdir()
        (tmp_path / name / "lineage" / "training.json").write_text(f'{{"seconds": {seconds}}}')
    assert model_digest(tmp_path / "a") == model_digest(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"others")
    assert model_digest(tmp_path / "a") != model_digest(tmp_path / "b")


CHALLENGE = {
    "models.base.id": "champion",
    "models.finetuned.id": "candidate",
    "evaluation.mmlu.base": True,
    "evaluation.mmlu.finetuned": True,
}


@pytest.mark.parametrize(
    ("setting", "value", "same"),
    [
        *((key, value, True) for key, value in CHALLENGE.items()),
        ("retraining.explain", "always", True),
        ("training.learning_rate", 0.5, True),  # that is the candidate, not what it is judged by
        ("retraining.min_gain", 0.1, False),
        ("retraining.max_loss", {"accuracy": 0.1}, False),
        ("evaluation.mmlu.enabled", False, False),
        ("evaluation.confidence", 0.9, False),
        ("generation.max_new_tokens", 9, False),
        ("prompts.items", ["Another prompt."], False),
    ],
)
def test_what_a_candidate_is_judged_by(
    make_config: MakeConfig, tmp_path: Path, setting: str, value: Any, same: bool
) -> None:
    data = one_example(tmp_path / "data")
    before = judged_by(make_config(), data, "3")
    assert (judged_by(make_config({setting: value}), data, "3") == before) is same
    assert judged_by(make_config(), data, "4") != before
    assert judged_by(make_config(), one_example(tmp_path / "other", "Textiles"), "3") != before
