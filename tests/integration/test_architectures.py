"""Every architecture of docs/models.md from training to scores, as a tiny random model; those refused, with the reason.

Scores, self-influence and lambda are compared with autograd, batched answers with the model alone.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import PAD, VOCABULARY, blank_tokenizer, settings, tiny_examples
from influence_reference import Reference, close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from whence.config import Config
from whence.errors import ConfigError, ModelError
from whence.evaluation.decoding import completion_logprobs, continue_prompts, read_prompts
from whence.influence.collectors import COSINES, OWN
from whence.influence.factors import fit_factors, load_factors
from whence.influence.modules import coverage, require_examples, select_modules
from whence.influence.scoring import Scoring
from whence.models.language import LanguageModel
from whence.models.loading import load_model, require_usable
from whence.models.trained import TrainedModel
from whence.training import train

WIDE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "max_position_embeddings": 64}  # fmt: skip
ONE = WIDE | {"num_key_value_heads": 1}
TWO = WIDE | {"num_key_value_heads": 2}
OLD: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 20}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "codegen": OLD | {"n_head": 4, "rotary_dim": 4},
    "cohere": TWO,
    "deepseek_v3": TWO
    | {"moe_intermediate_size": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
       "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4,
       "first_k_dense_replace": 1},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_hidden_size": 20},
    "gemma": ONE | HEADS,
    "gemma2": ONE | HEADS | {"sliding_window": 4},
    "gemma3_text": ONE | HEADS | SLIDING,
    "gpt2": OLD,
    "gpt_bigcode": OLD,
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 64, "window_size": 4, "intermediate_size": 20},
    "gpt_neox": WIDE,
    "gptj": OLD | {"rotary_dim": 4},
    "granite": ONE,
    "llama": ONE,
    "mistral": ONE | {"sliding_window": 4},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "expansion_ratio": 2, "max_seq_len": 64},
    "olmo": TWO,
    "olmo2": TWO,
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 20, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64},
    "persimmon": WIDE,
    "phi": WIDE,
    "phi3": TWO,
    "qwen2": ONE,
    "qwen2_moe": TWO | EXPERTS | {"shared_expert_intermediate_size": 20},
    "qwen3": ONE | HEADS,
    "qwen3_5_text": TWO | HEADS | LINEAR,
    "stablelm": TWO,
    "starcoder2": ONE,
}  # fmt: skip
# All experts are fused parameters: there is no linear module in their MLPs to track.
FUSED: dict[str, dict[str, Any]] = {
    "gpt_oss": ONE | HEADS | SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": ONE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "olmoe": TWO | {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": TWO | EXPERTS | HEADS,
}
ATTENTION = ["q_proj", "o_proj"]
STATE = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": (STATE, "MambaForCausalLM takes no past_key_values"),
    "mamba2": (STATE | {"num_heads": 4, "head_dim": 8, "n_groups": 1}, "Mamba2ForCausalLM takes no past_key_values"),
    "rwkv": (STATE | {"attention_hidden_size": 16}, "RwkvForCausalLM takes no past_key_values"),
    "bert": (WIDE, "BertLMHeadModel reads a text in both directions"),
}


def tiny(name: str, sizes: dict[str, Any]) -> PreTrainedModel:
    special = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, **special, **sizes)
    config._experts_implementation = "eager"  # the fused product has no float64, in which scores are compared
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "sizes", "modules"),
    [(name, sizes, "mlp") for name, sizes in ARCHITECTURES.items()]
    + [(name, sizes, ATTENTION) for name, sizes in FUSED.items()],
    ids=[*ARCHITECTURES, *FUSED],
)
def test_it_is_trained_answers_and_is_scored_as_by_autograd(
    tmp_path: Path, name: str, sizes: dict[str, Any], modules: Any
) -> None:
    tiny(name, sizes).save_pretrained(tmp_path / "base")
    blank_tokenizer().save_pretrained(tmp_path / "base")
    config = settings(factors__modules=modules, factors__use_empirical_fisher=True, factors__batch_size=4,
                      general__dtype="float32", training__dataloader_num_workers=0,
                      training__num_train_epochs=0.5)  # fmt: skip
    examples, queries = tiny_examples(19, seed=1), tiny_examples(3, seed=2)
    base = load_model(tmp_path / "base", config)
    require_usable(base.model, base.tokenizer, config.general)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    train(base, examples, queries, output=tmp_path / "model", checkpoints=tmp_path / "checkpoints",
          on_log=lambda step, metrics: None)  # fmt: skip
    trained = load_model(tmp_path / "model", config)
    tracked = select_modules(trained.model, config.factors)
    assert all(not torch.equal(before[f"{key}.weight"], trained.model.get_submodule(key).weight) for key in tracked)
    require_examples(trained.model, tracked)
    answers_as_alone(trained)
    if hasattr(trained.model.config, "_experts_implementation"):
        trained.model.config._experts_implementation = "eager"
    scored_as_by_autograd(trained.model.double(), tracked, config, tmp_path / "f", examples, queries)


def answers_as_alone(language: LanguageModel) -> None:
    """A padded batch with what was read before in a cache gives what every whole text gives by itself."""
    prompts, completions = [[3, 4, 5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15]], [(5, 6), (7,), (8, 9, 10)]
    prefix = read_prompts(language, prompts)
    ranked = completion_logprobs(language, prefix, completions)
    answers = continue_prompts(language, prefix, language.config.generation)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            for column, completion in enumerate(completions):
                logits = language.model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
                logprobs = logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) - 1 + len(completion)), completion]
                torch.testing.assert_close(ranked[row, column], logprobs.sum(), rtol=1e-4, atol=1e-4)
            text = [*prompt, *answers[row].token_ids]
            logits = language.model(input_ids=torch.tensor([text[:-1]]), use_cache=False).logits[0]
            assert logits[len(prompt) - 1 :].argmax(-1).tolist() == answers[row].token_ids


@torch.no_grad()
def embedding(model: PreTrainedModel, example: Any) -> torch.Tensor:
    states = model(input_ids=torch.tensor([example["input_ids"]]), output_hidden_states=True).hidden_states
    return torch.nn.functional.normalize(states[-1][0].mean(dim=0), dim=0)


def scored_as_by_autograd(
    model: PreTrainedModel, modules: list[str], config: Config, folder: Path, examples: Any, queries: Any
) -> None:
    trained = TrainedModel(model, blank_tokenizer(), config, examples)
    fit_factors(trained, folder)
    reference = Reference(model, modules)
    inverse, gradients = reference.inverse_ekfac(examples, None), reference.gradients(examples)

    def expected(asked: Any, seen: Any) -> torch.Tensor:
        return sum((inverse(asked, name, None) * seen[name]).sum() for name in modules)  # type: ignore[no-any-return]

    scores = [torch.stack([expected(asked, seen) for seen in gradients]) for asked in reference.gradients(queries)]
    scoring = Scoring(trained, folder, folder, queries=queries, baselines=True)
    scoring.compute()
    close(scoring.joined(), torch.stack(scores), relative=1e-4)
    own = torch.stack([expected(gradient, gradient) for gradient in gradients])
    close(scoring.joined(OWN), own, relative=1e-4)
    asked, seen = (
        torch.stack([embedding(model, some[row]) for row in range(len(some))]) for some in (queries, examples)
    )
    close(scoring.joined(COSINES), asked @ seen.T, relative=1e-4)
    factors = load_factors(folder)
    for name in modules:
        left, right = (factors[f"{side}_eigenvectors"][name].double() for side in ("gradient", "activation"))
        squares = [(left.T @ gradient[name] @ right).square() for gradient in gradients]
        assert int(factors["num_lambda_processed"][name]) == len(examples)
        close(factors["lambda_matrix"][name], torch.stack(squares).sum(0), relative=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_mlps_that_are_fused_experts_are_refused_by_name(name: str) -> None:
    model = tiny(name, FUSED[name])
    with pytest.raises(ConfigError, match=r"k_proj.* its experts are fused parameters.*layers\.0\.mlp\.experts\.\w+"):
        select_modules(model, settings().factors)
    covered = coverage(model, select_modules(model, settings(factors__modules=ATTENTION).factors))
    assert covered.tracked_mlp == 0 < covered.tracked < covered.parameters
    assert len(covered.fused) == 4, "two of each layer"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(name: str) -> None:
    sizes, reason = REFUSED[name]
    with pytest.raises(ModelError, match=rf"models\.base\.name: .*{reason}"):
        require_usable(tiny(name, sizes), blank_tokenizer(), settings().general)


def test_the_table_in_the_documentation_is_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {found[1]: found[2] for found in re.finditer(r"^\| `(\w+)` \|.*\| ([\w ]+) \|$", page, re.MULTILINE)}
    expected = (
        dict.fromkeys(ARCHITECTURES, "yes") | dict.fromkeys(FUSED, "attention") | dict.fromkeys(REFUSED, "refused")
    )
    assert rows == expected
    assert rows.keys() <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


def test_a_model_without_fused_attention_is_used_with_its_own_and_that_is_said(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        require_usable(tiny("gptj", ARCHITECTURES["gptj"]), blank_tokenizer(), settings().general)
    assert "GPTJForCausalLM has no fused attention; its own is used" in caplog.text
    flash = settings(general__use_flash_attention=True).general
    with pytest.raises(ConfigError, match=r"general\.use_flash_attention: BloomForCausalLM has no FlashAttention"):
        require_usable(tiny("bloom", ARCHITECTURES["bloom"]), blank_tokenizer(), flash)


@pytest.mark.parametrize(("name", "refused"), [("gpt2", True), ("gptj", True), ("mpt", True), ("opt", True),
                                               ("bloom", False), ("llama", False)])  # fmt: skip
def test_longer_texts_than_a_table_of_positions_has_are_refused(name: str, refused: bool) -> None:
    model, longer = tiny(name, ARCHITECTURES[name]), settings(general__max_length=65).general
    require_usable(model, blank_tokenizer(), settings(general__max_length=64).general)
    if not refused:
        require_usable(model, blank_tokenizer(), longer)
        return
    with pytest.raises(ConfigError, match=r"general\.max_length 65 is beyond the 64 positions"):
        require_usable(model, blank_tokenizer(), longer)


def test_tokens_without_an_embedding_are_refused_by_name() -> None:
    tokenizer = blank_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(VOCABULARY - 2)])
    model = tiny("llama", ARCHITECTURES["llama"])
    require_usable(model, tokenizer, settings().general)
    tokenizer.add_tokens(["<image>"])
    require_usable(model, tokenizer, settings().general)
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    with pytest.raises(
        ModelError, match=rf"has 1 tokens beyond the model's 29 embeddings, .*'<fill>' \({VOCABULARY + 1}\)"
    ):
        require_usable(model, tokenizer, settings().general)
