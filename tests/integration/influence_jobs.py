"""Models, data and settings for fits and scores in processes of their own."""

from __future__ import annotations

import json
from typing import Any

import torch
from influence_helpers import PAD
from transformers import LlamaConfig, LlamaForCausalLM

from whence.config import Config
from whence.config_file import parse_config
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples

SETTINGS = {
    "models": {"base": {"name": "builtin:tiny-llama"}},
    "dataset": {"name": "builtin:demo"},
    "prompts": {"items": ["x"]},
    "generation": {"max_new_tokens": 1},
    "general": {"device": "cpu"},
}


def settings(**overrides: Any) -> Config:
    """A configuration with ``overrides`` by dotted key, dots written as double underscores."""
    return parse_config(json.dumps(SETTINGS), {key.replace("__", "."): value for key, value in overrides.items()})


def make_llama(vocabulary: int, width: int, inner: int, layers: int) -> LlamaForCausalLM:
    """A Llama with seeded random weights, the same in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def make_examples(
    count: int, vocabulary: int, shortest: int, longest: int, seed: int, counted: int
) -> TokenizedExamples:
    """Random tokens of differing lengths, the loss counting on the last ``counted``."""
    generator = torch.Generator().manual_seed(seed)
    encoded = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        encoded.append(Encoded(ids, [IGNORED] * (length - counted) + ids[-counted:], 0))
    return TokenizedExamples(encoded, PAD)
