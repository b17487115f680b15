"""Base and fine-tuned models: what can be loaded, in which precision, and what is refused in which words."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from whence.config import Config, General
from whence.config_file import parse_config
from whence.errors import ModelError
from whence.models.builtin import train_tokenizer
from whence.models.language import tokenizer_fingerprint
from whence.models.loading import (
    check_model,
    choose_device,
    choose_dtype,
    empty_model,
    load_base,
    load_base_tokenizer,
    load_model,
    load_tokenizer,
    write_base,
)

TEXTS = ["A lens bends light. Answer: Physics", "A loom weaves yarn. Answer: Textiles", "naïve café 東京 🙂"]


def settings(base: str = "builtin:tiny-llama", **overrides: Any) -> Config:
    text = f'models: {{base: {{name: "{base}"}}}}\ndataset: {{name: "builtin:demo"}}\nprompts: {{items: [x]}}\n'
    return parse_config(text, {"general.max_length": 64, "general.device": "cpu", **overrides})


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, as ``prepare`` writes it."""
    folder = tmp_path_factory.mktemp("base")
    write_base(settings(), TEXTS, folder)
    return folder


@pytest.fixture
def copy(builtin: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(builtin, tmp_path / "copy"))


def test_the_builtin_model_is_a_llama_that_loads_like_any_other(builtin: Path) -> None:
    loaded = load_base(builtin, settings())
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.config.model_type == "llama"
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 64
    names = [name for name, _ in model.named_modules()]
    assert {f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")} <= set(names)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)


def test_the_builtin_tokenizer_starts_texts_and_gives_every_text_back(builtin: Path) -> None:
    tokenizer = load_base_tokenizer(builtin)
    for text in (*TEXTS, "never seen: \u202eßΩ\t\n 🚲", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_the_builtin_model_hangs_on_the_seed_alone(builtin: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # must not matter, nor be disturbed
    before = torch.get_rng_state()
    write_base(settings(), TEXTS, tmp_path / "same")
    assert torch.equal(before, torch.get_rng_state())
    write_base(settings(**{"general.seed": 1}), TEXTS, tmp_path / "other")
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "same" / file).read_bytes() == (builtin / file).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (builtin / "model.safetensors").read_bytes()


def test_a_base_that_is_not_builtin_is_kept_as_a_reference(builtin: Path, tmp_path: Path) -> None:
    write_base(settings(str(builtin), **{"models.base.revision": "abc"}), TEXTS, tmp_path)
    assert json.loads((tmp_path / "base.json").read_text()) == {"name": str(builtin), "revision": "abc"}
    assert [file.name for file in tmp_path.iterdir()] == ["base.json"]
    model = load_base(tmp_path, settings()).model
    assert torch.equal(model.lm_head.weight, load_base(builtin, settings()).model.lm_head.weight)
    assert empty_model(str(builtin)).get_submodule("model.layers.1.mlp.up_proj").weight.is_meta


def test_precision_follows_the_settings_unless_the_caller_knows_better(builtin: Path) -> None:
    half = settings(**{"general.dtype": "bfloat16"})
    assert load_model(builtin, half).model.dtype == torch.bfloat16
    assert load_model(builtin, half, dtype=torch.float32).model.dtype == torch.float32
    assert choose_dtype(settings().general, torch.device("cpu")) == torch.float32


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"general\.device is cuda.*auto or cpu"):
        choose_device(General(device="cuda"))
    assert choose_device(General()).type == "cpu"


def test_auto_takes_the_accelerator_and_bfloat16_where_there_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_device(General()).type == "cuda"
    assert choose_device(settings().general).type == "cpu"
    assert choose_dtype(General(), torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_dtype(General(), torch.device("cuda")) == torch.float32


def test_a_good_folder_and_the_builtin_model_pass_the_check(builtin: Path) -> None:
    check_model(settings())
    check_model(settings(str(builtin)))


def test_a_name_that_is_nowhere_is_refused_with_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"models\.base\.name.*no/such-model.*folder with config\.json"):
        check_model(settings("no/such-model"))
    with pytest.raises(ModelError, match=r"models\.base\.name"):
        check_model(settings(str(tmp_path)))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match=r"'t5', not a causal language model"):
        check_model(settings(str(tmp_path)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), r"cannot read the configuration"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*\.safetensors weights"),
        (lambda folder: _cut(folder / "model.safetensors"), r"model\.safetensors are damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"cannot read the tokenizer"),
    ],
)
def test_a_damaged_folder_is_found_before_anything_is_loaded(copy: Path, damage: Any, message: str) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message):
        check_model(settings(str(copy)))
    with pytest.raises(ModelError):
        load_model(copy, settings())


def test_missing_weights_are_refused_by_name_and_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(copy, settings())


def test_a_tokenizer_without_an_end_is_refused_and_one_without_padding_pads_with_the_end(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(copy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    _edit(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="no end-of-text token"):
        load_tokenizer(copy)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed here")
def test_flash_attention_that_is_not_installed_is_refused_with_the_setting(builtin: Path) -> None:
    with pytest.raises(ModelError, match=r"general\.use_flash_attention"):
        load_model(builtin, settings(**{"general.use_flash_attention": True}))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**values, **changes}.items() if value is not None}))


def test_the_tokenizer_fingerprint_hangs_on_the_ids_of_texts_and_not_on_how_it_was_called(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    before = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a lens", "a loom weaves yarn"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tiny_tokenizer) == before
    assert tokenizer_fingerprint(train_tokenizer(["quite other words", "than those before"], 300)) != before
