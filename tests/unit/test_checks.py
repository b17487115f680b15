"""What `whence config check` and `prepare` find out before anything is trained: one list of checks for both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from whence.cli import main
from whence.config import Config
from whence.config_file import pack
from whence.errors import ConfigError, DataError, ResourceError, WhenceError
from whence.running.checks import CHECKS, check_world
from whence.stages import prepare

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A folder with a model of somebody's own."""
    folder = tmp_path_factory.mktemp("own")
    tiny_model.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text('{"text": "A lens bends light.", "label": "Physics"}\n')
    (folder / "twice.jsonl").write_text('{"text": "a", "label": "A"}\n{"text": "a", "text": "b", "label": "A"}\n')
    return folder


def own(folder: Path, **changes: Any) -> dict[str, Any]:
    files = {f"dataset.{split}_files": [str(folder / "rows.jsonl")] for split in ("train", "eval")}
    asked = {"prompts.items": [{"input": "A loom weaves.", "reference": "Textiles"}]}
    where = {"models.base.name": str(folder / "model"), "tracking.uri": f"sqlite:///{folder}/mlflow.db"}
    benchmark = {"evaluation.mmlu.source": "builtin:demo", "evaluation.mmlu.tasks": ["everyday_law"]}
    own = {key.replace("__", "."): value for key, value in changes.items()}
    return files | {"dataset.name": None} | asked | where | benchmark | own


def test_a_disk_too_small_for_model_and_checkpoints_is_found_before_training(
    folder: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it is known: without a number of rows, the model alone."""
    size = 4 * sum(tensor.numel() for tensor in load_file(folder / "model" / "model.safetensors").values())
    rows = {"dataset.num_samples": 5000, "training.save_steps": 10, "training.save_total_limit": 2}
    for more, needed in (({}, size), (rows, 10 * size)):
        config = make_config(own(folder) | {"general.work_dir": str(tmp_path)} | more)
        for free, fits in ((needed, True), (needed - 1, False)):
            monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            with nullcontext() if fits else pytest.raises(ResourceError, match=r"not enough disk for checkpoints"):
                check_world(config)


def test_what_is_right_passes_every_check(folder: Path, make_config: MakeConfig) -> None:
    looked_at: list[str] = []
    check_world(make_config(own(folder)), looked_at.append)
    assert looked_at == list(CHECKS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors__modules": ["c_fc"]}, "factors.modules: 'c_fc' matches none of the model's modules"),
        ({"inspection__layer": 2}, "inspection.layer: 2 has no tracked module; the model has [0, 1]"),
        ({"general__max_length": 20}, "prompt 'prompt-001': no room for the text of a prompt"),
        ({"evaluation__mmlu__tasks": ["virology"]}, "has no subject 'virology'"),
        ({"prompts__items": ["no reference"]}, "prompts without a reference answer to score: prompt-001"),
    ],
)
def test_what_is_wrong_is_found_by_the_check_and_by_prepare(
    folder: Path, make_config: MakeConfig, changes: dict[str, Any], words: str
) -> None:
    config = make_config(own(folder, **changes))
    with pytest.raises(WhenceError) as checked:
        check_world(config)
    assert words in str(checked.value)
    with pytest.raises(WhenceError) as prepared:
        prepare.resolve({"settings": pack(config)})
    assert str(prepared.value) == str(checked.value)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("nowhere.jsonl", "dataset.train_files: {folder}/nowhere.jsonl does not exist"),
        ("twice.jsonl", "line 2: not valid JSON: the key 'text' is given twice"),
    ],
)
def test_data_files_that_cannot_be_read_are_found_by_config_check(
    folder: Path, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, words: str
) -> None:
    settings = tmp_path / "own.yaml"
    settings.write_text(make_config(own(folder, dataset__train_files=[str(folder / file)])).to_yaml())
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", "--config", str(settings)])
    assert ended.value.code == 1
    assert words.format(folder=folder) in capsys.readouterr().err.replace("\n", " ").replace("  ", " ")
    with pytest.raises(DataError):
        check_world(make_config(own(folder, dataset__train_files=[str(folder / file)])))


def test_a_subject_that_is_listed_twice_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.mmlu\.tasks has 'virology' twice"):
        make_config({"evaluation.mmlu.tasks": ["virology", "anatomy", "virology"]})
