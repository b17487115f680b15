"""What a model makes of the queries: the log-probability of each query's answer."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from whence.data.batching import Batches, plan_batches
from whence.data.tokenization import IGNORED, TokenizedExamples


@torch.inference_mode()
def answer_logprobs(model: PreTrainedModel, queries: TokenizedExamples, batches: Batches | None = None) -> np.ndarray:
    """Summed log-probability of the counted tokens of each query, ``[queries]`` float64: minus its summed loss.

    Args:
        batches: of the queries; None: by their lengths, 4,096 tokens each.
    """
    model.eval()
    totals = np.zeros(len(queries))
    for batch in batches or plan_batches(queries.lengths, 4096):
        totals[batch] = sequence_logprobs(model, queries.batch(batch)).double().cpu().numpy()
    return totals


def sequence_logprobs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed log-probability of the counted tokens of each row of a padded batch, ``[batch]`` fp32."""
    inputs = {name: values.to(model.device) for name, values in inputs.items()}
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    targets = inputs["labels"][:, 1:]
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return -losses.sum(dim=1)
