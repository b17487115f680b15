"""What a model makes of examples: the log-probability of each one's answer."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from whence.data.batching import Batches, plan_batches
from whence.data.tokenization import IGNORED, TokenizedExamples
from whence.evaluation.decoding import accepted


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
    targets = inputs.pop("labels")[:, 1:]  # the token at t is predicted from those before it
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    kept = accepted(model, logits_to_keep=columns)  # logits take memory in proportion to the vocabulary
    logits = model(**inputs, use_cache=False, **kept).logits
    logits = (logits if kept else logits[:, columns]).float()
    losses = functional.cross_entropy(logits.mT, targets[:, columns], ignore_index=IGNORED, reduction="none")
    return -losses.sum(dim=1)
