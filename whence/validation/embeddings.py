"""The embedding baseline: cosine between mean-pooled states of the model's own last layer."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from whence.data.batching import plan_batches
from whence.data.tokenization import TokenizedExamples, collate


def embedding_scores(
    model: PreTrainedModel, queries: TokenizedExamples, train: TokenizedExamples, pad_token_id: int, max_tokens: int
) -> np.ndarray:
    """Cosine between queries and training examples, ``[queries, examples]`` float64.

    Args:
        max_tokens: of a padded batch.
    """
    asked, known = (_embed(model, examples, pad_token_id, max_tokens) for examples in (queries, train))
    return asked @ known.T


@torch.inference_mode()
def _embed(model: PreTrainedModel, examples: TokenizedExamples, pad_token_id: int, max_tokens: int) -> np.ndarray:
    """Unit vectors of the examples, ``[examples, width]``."""
    model.eval()
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    rows: list[np.ndarray | None] = [None] * len(examples)
    with tqdm(total=len(examples), desc="embeddings", unit="example", mininterval=1) as progress:
        for batch in plan_batches(examples.lengths, max_tokens):
            inputs = collate([examples[index] for index in batch], pad_token_id)
            mask = inputs["attention_mask"].to(model.device)
            states = decoder(input_ids=inputs["input_ids"].to(model.device), attention_mask=mask).last_hidden_state
            means = (states.float() * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
            for index, row in zip(batch, torch.nn.functional.normalize(means.double()).cpu().numpy(), strict=True):
                rows[index] = row
            progress.update(len(batch))
    return np.stack([row for row in rows if row is not None])
