"""A tiny model with tiny data, and the settings to fit it with: what the influence tests share."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from whence.config import Config
from whence.config_file import parse_config
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples
from whence.models.trained import TrainedModel

PAD = 0
VOCABULARY = 29
RARE = VOCABULARY - 1  # a token that no example has
MODULES = [f"model.layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")]


def tiny_llama(dtype: torch.dtype = torch.float64, **settings: Any) -> LlamaForCausalLM:
    """Two layers, width 12; seeded random weights large enough for the Fisher to be far from flat."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        initializer_range=0.3,
        tie_word_embeddings=False,
        **settings,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_examples(count: int, seed: int, longest: int = 14) -> TokenizedExamples:
    """Random tokens of differing lengths; the loss counts on the last few."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    encoded = []
    for _ in range(count):
        length, answer = number(5, longest + 1), number(1, 4)
        ids = torch.randint(1, RARE, (length,), generator=generator).tolist()
        encoded.append(Encoded(ids, [IGNORED] * (length - answer) + ids[length - answer :], 0))
    return TokenizedExamples(encoded, PAD)


def blank_tokenizer(name: str = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer for examples that are made of token ids: it pads with 0."""
    words = Tokenizer(models.WordLevel({"<pad>": PAD, name: 1}))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=name)


def trained(model: PreTrainedModel, examples: TokenizedExamples, config: Config) -> TrainedModel:
    """A model with examples that are made of token ids."""
    return TrainedModel(model, blank_tokenizer(), config, examples)


def settings(**overrides: Any) -> Config:
    """A configuration with ``overrides`` by dotted key, dots written as double underscores."""
    text = (
        "{models: {base: {name: builtin:tiny-llama}}, dataset: {name: builtin:demo}, prompts: {items: [x]},"
        " general: {max_length: 16, device: cpu}, generation: {max_new_tokens: 4}}"
    )
    return parse_config(text, {key.replace("__", "."): value for key, value in overrides.items()})
