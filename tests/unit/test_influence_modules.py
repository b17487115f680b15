"""Which modules the settings choose, and what is said when they cannot."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import MODULES, settings, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from whence.errors import ConfigError
from whence.influence.modules import layer_of, select_modules


def chosen(model: torch.nn.Module, modules: list[str], layers: object = "all") -> list[str]:
    inspected = {"inspection__layer": layers[0]} if isinstance(layers, list) else {}
    return select_modules(model, settings(factors__modules=modules, factors__layers=layers, **inspected).factors)


def test_last_name_parts_choose_the_modules_of_all_layers_in_the_models_order() -> None:
    assert chosen(tiny_llama(), ["down_proj", "gate_proj", "up_proj"]) == MODULES


def test_a_glob_is_matched_against_the_whole_name() -> None:
    assert chosen(tiny_llama(), ["model.layers.1.mlp.*_proj"]) == MODULES[3:]


def test_layers_narrow_the_choice() -> None:
    assert chosen(tiny_llama(), ["up_proj"], layers=[1]) == ["model.layers.1.mlp.up_proj"]


def test_it_works_without_weights() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    assert chosen(model, ["q_proj"]) == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("modules", "layers", "message"),
    [
        (["c_fc"], "all", r"'c_fc' matches none of the model's modules; the model has down_proj, gate_proj, k_proj"),
        (["up_proj"], [5], r"factors.layers: \[5\] are not in the model, which has layers 0 to 1"),
        (["lm_head"], [0], r"'lm_head' matches lm_head, but none of them is in factors.layers \[0\]"),
        (["up_proj", "embed_tokens"], "all", r"model\.embed_tokens cannot be tracked, being of type Embedding"),
        (["input_layernorm"], "all", r"cannot be tracked, being of type LlamaRMSNorm; only Linear, Conv1D can"),
    ],
)
def test_a_wrong_choice_is_an_error_that_names_what_exists(modules, layers, message) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(tiny_llama(), modules, layers)


def test_a_tied_output_layer_is_refused() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True)
    )
    with pytest.raises(ConfigError, match=r"lm_head shares its weight with model\.embed_tokens"):
        chosen(model, ["lm_head"])


def test_layers_are_read_from_names_of_any_architecture() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2, n_positions=8))
    assert chosen(model, ["c_fc"], layers=[1]) == ["transformer.h.1.mlp.c_fc"]
    assert layer_of("lm_head") is None


def test_adapters_in_a_dictionary_are_called_by_its_name_or_by_their_key() -> None:
    model = tiny_llama()
    for layer in model.model.layers:
        layer.mlp.up_proj.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(12, 2)})
    adapters = [f"model.layers.{layer}.mlp.up_proj.lora_A.default" for layer in (0, 1)]
    assert chosen(model, ["lora_A"]) == chosen(model, ["*.lora_A.*"]) == chosen(model, ["default"]) == adapters
    with pytest.raises(ConfigError, match=r"'lora_B' matches none .* the model has down_proj, .*, lora_A, o_proj"):
        chosen(model, ["lora_B"])
