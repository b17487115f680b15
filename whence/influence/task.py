"""What kronfluence asks of a task, for causal language models: the loss, the measurement, and what is tracked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kronfluence.task import Task
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from whence.models.forward import accepted, counted_logits


class LanguageModelingTask(Task):
    """Summed token cross-entropy over the loss mask, as training loss and as the measurement on queries.

    The mask is the labels' own (-100 where the loss does not count). Sums, not means: an example's gradient must not
    depend on its batch. Batches are dictionaries of ``input_ids``, ``attention_mask`` and ``labels``
    (``[batch, longest]``), padded on the right, and ``uniforms`` of the same shape where labels are sampled.
    """

    def __init__(self, model: PreTrainedModel, modules: Sequence[str]) -> None:
        """Track ``modules`` of ``model``, named as in ``model.named_modules()``, before they are wrapped."""
        self.modules = list(modules)
        # Not of the counted tokens alone when the output layer is tracked itself: its activations then are those of all
        # tokens, as for every module.
        head = model.get_output_embeddings()
        head_is_tracked = any(module is head and name in self.modules for name, module in model.named_modules())
        self.keeps_logits = bool(accepted(model, logits_to_keep=None)) and not head_is_tracked

    def get_influence_tracked_modules(self) -> list[str]:
        return self.modules

    def get_attention_mask(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["attention_mask"]

    def compute_train_loss(
        self, batch: dict[str, torch.Tensor], model: nn.Module, sample: bool = False
    ) -> torch.Tensor:
        """The batch's summed loss; with ``sample``, on labels drawn from the model's own distribution (true Fisher)."""
        logits, labels, counted = counted_logits(model, batch, whole=not self.keeps_logits)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if sample:
            labels = sample_labels(logits.detach(), batch["uniforms"][:, 1:][counted])
        return functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: dict[str, torch.Tensor], model: nn.Module) -> torch.Tensor:
        """The query's own loss, so that a positive score means: this example lowers it."""
        return self.compute_train_loss(batch, model)


def sample_labels(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw a label per row by inverting the cumulative distribution.

    The randomness comes in with the batch, keyed by example, so that an example is given the same labels whatever
    batch, partition or order it is met in: a resumed or divided fit equals the plain one.

    Args:
        logits: ``[rows, vocabulary]``.
        uniforms: ``[rows]``, in [0, 1).
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    threshold = uniforms.to(cumulative.dtype) * cumulative[:, -1]  # the sum is 1 only up to rounding
    drawn = torch.searchsorted(cumulative, threshold.unsqueeze(1), right=True).squeeze(1)
    return drawn.clamp_(max=logits.shape[-1] - 1)
