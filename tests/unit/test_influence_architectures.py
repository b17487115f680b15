"""Scores of models that are not plain: adapters, GPT-2's transposed layers, padded batches."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import MODULES, VOCABULARY, settings, tiny_examples, tiny_llama, trained
from influence_reference import Reference, close, expected_scores, fit_and_score
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from whence.config import Config
from whence.influence.modules import select_modules
from whence.influence.scores import self_influence
from whence.influence.task import LanguageModelingTask

RANK = 3
SIZES = ("factors__batch_size", "scores__train_batch_size", "scores__query_batch_size")


class LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank adapter (Hu et al. 2021, arXiv:2106.09685), laid out as peft does."""

    def __init__(self, base: nn.Linear, named: bool) -> None:
        super().__init__()
        self.base_layer, self.named = base.requires_grad_(False), named
        down, up = nn.Linear(base.in_features, RANK, bias=False), nn.Linear(RANK, base.out_features, bias=False)
        self.lora_A = nn.ModuleDict({"default": down}) if named else down
        self.lora_B = nn.ModuleDict({"default": up}) if named else up

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        down, up = (side["default"] if self.named else side for side in (self.lora_A, self.lora_B))
        return self.base_layer(inputs) + 2.0 * up(down(inputs))


def lora_llama(named: bool) -> LlamaForCausalLM:
    """Only the adapters of both layers' ``up_proj`` can be trained."""
    model = tiny_llama().requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp.up_proj = LoraLinear(layer.mlp.up_proj, named)
    return model.to(torch.float64)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3)
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.to(torch.float64).eval()


def close_to_explicit_gradients(model: PreTrainedModel, config: Config, folder) -> None:  # type: ignore[no-untyped-def]
    train, queries = tiny_examples(19, seed=1), tiny_examples(4, seed=2)
    found = fit_and_score(model, config, folder, queries, train)
    close(found, expected_scores(Reference(model, select_modules(model, config.factors)), queries, train))


@pytest.mark.parametrize(
    ("named", "patterns"),
    [
        (False, ["lora_A", "lora_B"]),
        (True, ["lora_A", "lora_B"]),
        (True, ["*.lora_A.*", "*.lora_B.*"]),
        (True, ["*.lora_A.default", "*.lora_B.default"]),
    ],
)
def test_adapters_are_scored_as_by_explicit_gradients(tmp_path, named, patterns) -> None:
    model, config = lora_llama(named), settings(factors__modules=patterns, factors__use_empirical_fisher=True)
    ending = ".default" if named else ""
    assert select_modules(model, config.factors) == [
        f"model.layers.{layer}.mlp.up_proj.lora_{side}{ending}" for layer in (0, 1) for side in "AB"
    ]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    close_to_explicit_gradients(model, config, tmp_path / "f")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


@pytest.mark.parametrize("patterns", [["c_fc", "*.mlp.c_proj"], ["c_attn"]])
def test_gpt2s_layers_are_scored_as_by_explicit_gradients(tmp_path, patterns) -> None:
    close_to_explicit_gradients(
        gpt2(), settings(factors__modules=patterns, factors__use_empirical_fisher=True), tmp_path / "f"
    )


def test_padding_has_no_part_in_the_scores(tmp_path) -> None:
    """One batch of all examples, most of them padded, gives what each would give alone; also for the bias's ones."""
    model = tiny_llama(mlp_bias=True)
    alone, together = (settings(factors__use_empirical_fisher=True, **dict.fromkeys(SIZES, size)) for size in (1, 64))
    train, queries = tiny_examples(19, seed=1), tiny_examples(4, seed=2)
    found = fit_and_score(model, together, tmp_path / "together", queries, train)
    close(found, fit_and_score(model, alone, tmp_path / "alone", queries, train))
    close(found, expected_scores(Reference(model, MODULES), queries, train))


def test_processed_gradients_are_scored_as_they_are_after_it(tmp_path, monkeypatch) -> None:
    """kronfluence's hook on per-example gradients; here they are clipped in every module."""

    def clip(gradients: torch.Tensor) -> torch.Tensor:
        norms = gradients.flatten(-2).norm(dim=-1)
        return gradients * (0.5 / norms).clamp(max=1)[..., None, None]

    monkeypatch.setattr(LanguageModelingTask, "enable_post_process_per_sample_gradient", True)
    monkeypatch.setattr(
        LanguageModelingTask, "post_process_per_sample_gradient", lambda self, module_name, gradient: clip(gradient)
    )
    model, config = tiny_llama(mlp_bias=True), settings(factors__use_empirical_fisher=True)
    train, queries = tiny_examples(19, seed=1), tiny_examples(4, seed=2)
    reference = Reference(model, MODULES, lambda _, gradient: clip(gradient))
    close(fit_and_score(model, config, tmp_path / "f", queries, train), expected_scores(reference, queries, train))
    own = self_influence(trained(model, train, config), tmp_path / "f", tmp_path)
    close(own, expected_scores(reference, train, train).diagonal())
