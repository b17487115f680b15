"""Scores of models that are not plain: adapters, GPT-2's transposed layers, padded batches."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import MODULES, VOCABULARY, settings, tiny_examples, tiny_llama, trained
from influence_reference import Reference, close, expected_scores, fit_and_score
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from whence.config import Config
from whence.errors import ConfigError, FactorError
from whence.influence.factors import fit_factors, load_factors
from whence.influence.modules import require_examples, select_modules
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


def opt() -> OPTForCausalLM:
    """Its MLPs are handed all tokens of a batch in one row, ``[batch * tokens, width]``."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=12, word_embed_proj_dim=12, ffn_dim=20, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, init_std=0.3, pad_token_id=0,
    )  # fmt: skip
    return OPTForCausalLM(config).to(torch.float64).eval()


def shared_experts() -> Qwen2MoeForCausalLM:
    """So is the expert that all tokens share in a mixture."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=VOCABULARY, hidden_size=12, moe_intermediate_size=8, shared_expert_intermediate_size=20,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    config._experts_implementation = "eager"  # the grouped product is one of bfloat16
    return Qwen2MoeForCausalLM(config).to(torch.float64).eval()


@pytest.mark.parametrize(
    ("model", "patterns"),
    [(opt(), ["fc1", "fc2", "v_proj"]), (shared_experts(), ["*.shared_expert.*_proj", "shared_expert_gate"])],
)
def test_tokens_in_one_row_are_counted_and_scored_by_example(tmp_path, model, patterns) -> None:
    config = settings(factors__modules=patterns, factors__use_empirical_fisher=True, factors__batch_size=4)
    train, queries = tiny_examples(19, seed=1), tiny_examples(4, seed=2)
    modules = select_modules(model, config.factors)
    require_examples(model, modules)
    found = fit_and_score(model, config, tmp_path / "f", queries, train)
    reference = Reference(model, modules)
    close(found, expected_scores(reference, queries, train), relative=1e-4)
    factors, gradients = load_factors(tmp_path / "f"), reference.gradients(train)
    for name in modules:
        left, right = (factors[f"{side}_eigenvectors"][name].double() for side in ("gradient", "activation"))
        squares = [(left.T @ gradient[name] @ right).square() for gradient in gradients]
        assert int(factors["num_lambda_processed"][name]) == len(train)
        close(factors["lambda_matrix"][name], torch.stack(squares).sum(0), relative=1e-4)


class Routed(nn.Module):
    """An MLP whose first layer sees chosen tokens only, or all of them twice."""

    def __init__(self, mlp: nn.Module, way: str) -> None:
        super().__init__()
        self.mlp, self.way = mlp, way

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.way == "twice":
            return self.mlp(hidden) + self.mlp(hidden.flip(-1))
        return hidden.index_copy(1, torch.tensor([0]), self.mlp(hidden[:, :1].flatten(0, 1)).unsqueeze(1))


@pytest.mark.parametrize("way", ["chosen", "twice"])
def test_a_module_that_does_not_see_every_example_once_is_refused_by_name(tmp_path, way) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp = Routed(model.model.layers[1].mlp, way)
    modules = [f"model.layers.1.mlp.mlp.{name}_proj" for name in ("gate", "up", "down")]
    with pytest.raises(ConfigError, match=r"factors\.modules: .*model\.layers\.1\.mlp\.mlp\.\w+_proj"):
        require_examples(model, modules)
    config = settings(factors__modules=["*.mlp.mlp.*"], factors__use_empirical_fisher=True)
    with pytest.raises(FactorError, match=r"module model\.layers\.1\.mlp\.mlp\.\w+_proj"):
        fit_factors(trained(model, tiny_examples(19, seed=1), config), tmp_path / "f")


@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_dead_module_is_named_and_contributes_nothing(tmp_path, caplog, strategy, rank) -> None:
    """The second layer's MLP neither reads nor writes: none of its modules has a gradient."""
    model = tiny_llama()
    dead = [name for name in MODULES if "layers.1" in name]
    for name in dead:
        model.get_submodule(name).weight.data.zero_()
    examples = {"queries": tiny_examples(4, seed=2), "train": tiny_examples(19, seed=1)}

    def scored(folder: str, **layers: list[int]) -> torch.Tensor:
        config = settings(factors__strategy=strategy, scores__query_gradient_low_rank=rank, **layers)
        return fit_and_score(model, config, tmp_path / folder, **examples)

    found = scored("all")
    named = {name for record in caplog.records for name in dead if f"module {name} has no gradient" in record.message}
    assert named == set(dead)
    close(found, scored("living", factors__layers=[0]))
    own = self_influence(
        trained(model, examples["train"], settings(factors__strategy=strategy)), tmp_path / "all", tmp_path
    )
    assert own.isfinite().all()
    assert (own > 0).all()


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
