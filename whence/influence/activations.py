"""What a forward pass leaves for the backward pass, asked of the model itself with one short example.

What autograd keeps differs between architectures, attention kernels and precisions; one forward pass tells it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from whence.data.tokenization import IGNORED
from whence.influence.linear import FastLinear
from whence.influence.shared import place_of
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import tracked_model, tracked_modules

PROBE_TOKENS = 64


class Kept(NamedTuple):
    """Bytes for every token of a batch.

    Attributes:
        saved: by autograd.
        inputs: of tracked modules, which per-example gradients need; only those that autograd does not save anyway.
        sharing: to a module the first one that sees the same input, where that is another one.
    """

    saved: float
    inputs: float
    sharing: dict[str, str]


_known: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Kept]] = WeakKeyDictionary()


def kept_per_token(model: PreTrainedModel, modules: Iterable[str]) -> Kept:
    """What the model keeps when ``modules`` are tracked; in proportion to the tokens, whatever their number."""
    names, known = tuple(modules), _known.setdefault(model, {})
    if names not in known:
        known[names] = _probe(model, names)
    return known[names]


def _probe(model: PreTrainedModel, modules: tuple[str, ...]) -> Kept:
    length = min(PROBE_TOKENS, getattr(model.config, "max_position_embeddings", PROBE_TOKENS))
    ids = torch.zeros(1, length, dtype=torch.int64, device=next(model.parameters()).device)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1] = 0  # logits are counted apart
    task = LanguageModelingTask(model, modules)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}  # bytes by address, for several operations may save the same storage
    inputs: list[torch.Tensor] = []
    first: dict[tuple[object, ...], str] = {}  # module that saw an input, while all inputs are held
    sharing: dict[str, str] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def see(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, FastLinear)
        inputs.append(arguments[0].detach())
        seen = first.setdefault((*place_of(arguments[0]), module.bias is None), module.name)
        if seen != module.name:
            sharing[module.name] = seen

    with tracked_model(model, task) as network:
        for module in tracked_modules(network).values():
            module.register_forward_pre_hook(see)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = task.compute_train_loss({"input_ids": ids, "labels": labels}, network)
    others = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in inputs}
    del loss  # which has kept all that was saved, so that no address was given twice
    for address in weights:
        saved.pop(address, None)
    beyond = sum(size for address, size in others.items() if address not in saved)
    return Kept(sum(saved.values()) / length, beyond / length, sharing)
