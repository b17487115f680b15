"""Settings are refused with the key's path and a way out, and resolve to explicit values."""

import json
from pathlib import Path

import pytest
import yaml

from whence.config import Config
from whence.config_file import dotted_keys, get_dotted, inline_prompts, load_config, parse_config, parse_override
from whence.errors import ConfigError

MINIMAL = """
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: ["Who built the bridge?"]}
"""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"dataset.num_sample": 3}, ["dataset.num_sample", "did you mean dataset.num_samples"]),
        ({"training.learning_rate": -1}, ["training.learning_rate", "greater than 0", "-1"]),
        ({"training.per_device_train_batch_size": "many"}, ["training.per_device_train_batch_size", "'many'"]),
        ({"dataset.train_files": ["a.csv"]}, ["dataset.name", "dataset.train_files"]),
        ({"dataset.template": "no place for the text"}, ["dataset.template", "{input}"]),
        ({"factors.layers": [1, 2]}, ["inspection.layer 0", "factors.layers [1, 2]"]),
        ({"generation.max_new_tokens": 512}, ["generation.max_new_tokens", "general.max_length 512"]),
        ({"models.finetuned.id": "base"}, ["base.id", "finetuned.id"]),
        ({"evaluation.mmlu.finetuned": False}, ["evaluation.mmlu", "neither"]),
        ({"general.seed.deeper": 1}, ["general.seed"]),
        ({"prompts.path": "p.json"}, ["prompts.path", "prompts.items"]),
        ({"dataset.label_names": {0: "Food"}}, ["dataset.label_names.0: 0 as a key is a number", "in quotes"]),
        ({"dataset.label_names": {"x": True}}, ["dataset.label_names.x: true is a truth value", "in quotes"]),
        ({"models.base.revision": 1234567}, ["models.base.revision: 1234567 is a number", "in quotes"]),
        ({"cluster.stages": {"train": {"shm": 1}}}, ["cluster.stages.train.shm: 1 is a number", "in quotes"]),
    ],
)
def test_a_wrong_setting_is_refused_naming_key_and_value(override: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL, {"general.seed": 0} | override)
    for word in words:
        assert word in str(caught.value)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL, {"general.seed": -1, "scores.top_k": 0, "colour": "red"})
    assert all(key in str(caught.value) for key in ("general.seed", "scores.top_k", "colour"))


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "a: [1,"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="YAML"):
        parse_config(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("a.b=false", False), ("a.b=[x, y]", ["x", "y"]), ("a.b=null", None), ("a.b=x=y", "x=y"),
     ("a.b=v1", "v1"), ("a.b=2e-5", 2e-5), ("a.b=no", "no"), ("a.b=010", "010")],
)  # fmt: skip
def test_overrides_are_read_as_yaml_values(text: str, value: object) -> None:
    assert parse_override(text) == ("a.b", value)


@pytest.mark.parametrize("text", ["no-equals-sign", "=3"])
def test_an_override_without_a_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_override(text)


def test_settings_are_what_was_written() -> None:
    config = parse_config(
        """
        models: {base: {name: m, revision: 0123456}}
        dataset: {name: d, label_names: {no: not granted, yes: granted, 010: B, 2024-01-31: a day}}
        prompts: {items: [{prompt: Why?, reference: no}]}
        training: {learning_rate: 2e-5, bf16: no}
        """
    )
    assert config.models.base.revision == "0123456"
    assert config.dataset.label_names == {"no": "not granted", "yes": "granted", "010": "B", "2024-01-31": "a day"}
    assert config.prompts.items == [{"prompt": "Why?", "reference": "no"}]
    assert (config.training.learning_rate, config.training.bf16) == (2e-5, False)
    assert parse_config(config.to_yaml()) == config


def test_a_section_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text(MINIMAL + "training: {num_train_epochs: 20}\n\ntraining: {learning_rate: 1e-3}\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml .*'training' is given twice, in lines 5 and 7"):
        load_config(file)


def test_the_resolved_configuration_reads_back_equal() -> None:
    config = parse_config(MINIMAL, {"training.learning_rate": 1e-3, "factors.layers": [0, 1]})
    again = parse_config(config.to_yaml())
    assert again == config
    assert set(yaml.safe_load(config.to_yaml())) == set(Config.model_fields)


def test_every_setting_has_a_help_text_and_can_be_looked_up() -> None:
    config = parse_config(MINIMAL)
    for key, help_text in dotted_keys().items():
        assert help_text, key
        get_dotted(config, key)


def test_relative_inputs_belong_to_the_file_and_outputs_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, elsewhere = tmp_path / "configs", tmp_path / "elsewhere"
    configs.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (configs / "c.yaml").write_text(
        "general: {work_dir: work}\n"
        "models: {base: {name: org/model}, finetuned: {path: model}}\n"
        "dataset: {train_files: [t.csv, 's3://b/t.csv'], eval_files: [e.csv]}\n"
        "prompts: {path: prompts/p.json}\n"
    )
    config = load_config(configs / "c.yaml")
    assert config.general.work_dir == str(elsewhere / "work")
    assert config.models.finetuned.path == str(elsewhere / "model")
    assert config.models.base.name == "org/model", "a hub name is not a path"
    assert config.dataset.train_files == [str(configs / "t.csv"), "s3://b/t.csv"]
    assert config.prompts.path == str(configs / "prompts/p.json")


def test_inlined_prompts_need_no_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"prompt_id": "a", "prompt": "Why?"}]))
    (tmp_path / "c.yaml").write_text("models: {base: {name: m}}\ndataset: {name: d}\nprompts: {path: p.json}\n")
    config = inline_prompts(load_config(tmp_path / "c.yaml"))
    assert config.prompts.path is None
    assert config.prompts.items == [{"prompt_id": "a", "prompt": "Why?"}]
