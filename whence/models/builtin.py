"""The demo's built-in model: a Llama of about 650,000 parameters, and a tokenizer learned of the texts at hand."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
TINY_LLAMA_VOCABULARY = 2048


def train_tokenizer(texts: list[str], vocabulary: int = TINY_LLAMA_VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned of ``texts``, with Llama's special tokens; deterministic.

    Every byte is in its alphabet, so that no text is unknown to it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_llama(vocabulary: int, max_length: int, seed: int) -> LlamaForCausalLM:
    """The demo's base model: a Llama of about 650,000 parameters with seeded random weights."""
    settings = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=max_length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **TINY_LLAMA,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(settings)
