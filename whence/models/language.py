"""A causal language model with its tokenizer and the settings it is used with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from whence.config import Config
from whence.data.tokenization import Encoder, TokenizedExamples
from whence.errors import ModelError


@dataclass
class LanguageModel:
    """A model that is used with this tokenizer and this configuration, and what both are recognised by.

    Fingerprints are computed once: make another object when weights have changed.

    Raises:
        ModelError: the tokenizer has no end-of-text token. One without a padding token pads with that.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: Config

    def __post_init__(self) -> None:
        make_usable(self.tokenizer)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def encoder(self) -> Encoder:
        """How prompts and answers become tokens."""
        return Encoder(self.tokenizer, self.config)

    @cached_property
    def model_fingerprint(self) -> str:
        """sha256 (hex) over the names, precisions, shapes and values of all weights."""
        return tensors_digest(sorted(self.model.state_dict().items()))

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """sha256 (hex) of what decides which token ids a text gets; see :func:`tokenizer_fingerprint`."""
        return tokenizer_fingerprint(self.tokenizer)

    def tokenize(self, frame: pd.DataFrame) -> TokenizedExamples:
        """The columns ``prompt`` and ``completion`` as token ids with their loss mask.

        Raises:
            DataError: an answer does not fit within ``general.max_length``.
        """
        return TokenizedExamples.from_frame(frame, self.tokenizer, self.config)

    def encode_prompt(self, prompt: str, max_new_tokens: int) -> list[int]:
        """Token ids of a prompt, shortened to leave ``max_new_tokens`` of ``general.max_length`` free."""
        return self.encoder.prompt(prompt, max_new_tokens)

    def token_texts(self, prompt: str, completion: str) -> list[str]:
        """The text of every token of an example as :meth:`tokenize` has it."""
        return self.encoder.texts(prompt, completion)

    def decode(self, token_ids: list[int]) -> str:
        """The text of an answer, without special tokens and white space around it."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()


def make_usable(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that can pad and end a text.

    Raises:
        ModelError: it has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-text token, so answers would never end"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides which token ids a text gets; padding and truncation, which calls change, are left out."""
    parts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    if tokenizer.chat_template:
        parts["chat_template"] = tokenizer.chat_template
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        parts |= {name: backend[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "model")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 (hex) over the names, precisions, shapes and values of tensors, wherever they are, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
