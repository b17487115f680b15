"""Passes through a model: the inputs that it takes, and logits of those tokens alone whose loss counts."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from whence.data.tokenization import IGNORED


def accepted(model: nn.Module, **inputs: Any) -> dict[str, Any]:
    """Those of ``inputs`` that the model takes: one without position ids (ALiBi) counts from the mask, or distances."""
    taken = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in taken}


def counted_columns(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places ``[columns]`` whose logits some row's loss needs, and what is predicted there ``[batch, columns]``.

    The token at t is predicted from those before it. ``labels`` is ``[batch, tokens]``.
    """
    targets = labels[:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    return columns, targets[:, columns]


def counted_logits(
    model: nn.Module, batch: dict[str, torch.Tensor], whole: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits ``[counted, vocabulary]`` of the tokens whose loss counts, row by row, and these tokens ``[counted]``.

    Prompts are most of the tokens, and logits cost time and memory in proportion to the vocabulary, so a model that can
    (``logits_to_keep``) is asked for no others; ``whole`` asks for those of all tokens. The third is the mask
    ``[batch, tokens - 1]`` of both.

    Padding is on the right, where no token of a causal model looks: without a mask, attention takes its fast way.
    """
    columns, _ = counted_columns(batch["labels"])
    kept = {} if whole else accepted(model, logits_to_keep=columns)
    logits = model(input_ids=batch["input_ids"], use_cache=False, **kept).logits
    counted = batch["labels"][:, 1:] != IGNORED
    return (logits if kept else logits[:, columns])[counted[:, columns]], batch["labels"][:, 1:][counted], counted
