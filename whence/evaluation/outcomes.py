"""What a model makes of examples: the log-probability of each one's answer."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from whence.data.batching import Batches, plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.models.forward import counted_logits


@torch.inference_mode()
def answer_logprobs(model: PreTrainedModel, examples: TokenizedExamples, batches: Batches | None = None) -> np.ndarray:
    """Summed log-probability of the counted tokens of each example, ``[examples]`` float64: minus its summed loss.

    Args:
        batches: of the examples; None: by their lengths, 4,096 tokens each.
    """
    model.eval()
    totals = np.zeros(len(examples))
    for batch in batches or plan_batches(examples.lengths, 4096):
        totals[batch] = sequence_logprobs(model, examples.batch(batch)).double().cpu().numpy()
    return totals


def sequence_logprobs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed log-probability of the counted tokens of each row of a padded batch, ``[batch]`` fp32."""
    inputs = {name: values.to(model.device) for name, values in inputs.items()}
    logits, labels, counted = counted_logits(model, inputs)
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    return losses.new_zeros(len(counted)).index_add(0, counted.nonzero()[:, 0], -losses)
