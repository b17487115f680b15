"""A model with kronfluence's tracked modules installed, for as long as they are needed."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from kronfluence.analyzer import prepare_model
from kronfluence.module import TrackedModule
from kronfluence.utils.state import State
from torch import nn
from transformers import PreTrainedModel

from whence.influence.info import Shape
from whence.influence.linear import FastLinear
from whence.influence.task import LanguageModelingTask


@contextmanager
def tracked_model(model: PreTrainedModel, task: LanguageModelingTask) -> Iterator[PreTrainedModel]:
    """``model`` with the task's modules wrapped and every weight frozen; on leaving, it is what it was before."""
    training = model.training
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    device = next(model.parameters()).device
    hook = model.register_forward_pre_hook(_tell_shape, with_kwargs=True)
    gc.freeze()  # kronfluence collects garbage after every pass; what was there before need not be walked each time
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*GradScaler", FutureWarning)  # kronfluence's, at every call
            with _registered({type(model.get_submodule(name)) for name in task.modules}):
                prepare_model(model, task)
            yield model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the device from mypy
    finally:
        hook.remove()
        _unwrap(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(gradients[name])
        model.train(training)
        gc.collect()  # tracked modules hold gradients and one another; only what was made since is walked
        gc.unfreeze()


def _unwrap(model: nn.Module) -> None:
    """Put the model's own modules back; no tracked one is held by a name when this is done."""
    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, FastLinear)}
    for name, module in wrapped.items():
        model.set_submodule(name, module.original_module)
        module.collectors, module.source = (), None  # whoever still has the module has not all that was collected


def _tell_shape(model: nn.Module, _: tuple[torch.Tensor, ...], inputs: dict[str, torch.Tensor]) -> None:
    """Some modules are handed all tokens of a batch in one row: what tells examples apart is the batch's shape."""
    batch, tokens = inputs["input_ids"].shape
    for module in tracked_modules(model).values():
        module.batch_shape = batch, tokens


@contextmanager
def _registered(types: set[type[nn.Module]]) -> Iterator[None]:
    """Have kronfluence wrap these types (also subclasses of ``nn.Linear``) in Whence's tracked module.

    Only for the time of wrapping, so that plain kronfluence in the same process stays what it is.
    """
    registry = TrackedModule.SUPPORTED_MODULES
    before = dict(registry)
    registry.update(dict.fromkeys(types, FastLinear))
    try:
        yield
    finally:
        registry.clear()
        registry.update(before)


def module_shapes(model: nn.Module, names: list[str]) -> dict[str, Shape]:
    """Gradient shapes of the named linear modules."""
    shapes = {}
    for name in names:
        module = model.get_submodule(name)
        weight = module.get_parameter("weight")
        outputs, inputs = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
        shapes[name] = Shape(outputs, inputs + (getattr(module, "bias", None) is not None))
    return shapes


def tracked_modules(model: nn.Module) -> dict[str, FastLinear]:
    """The wrapped modules by their names in the unwrapped model."""
    return {module.name: module for module in model.modules() if isinstance(module, FastLinear)}


def engine_state(device: torch.device) -> State:
    """kronfluence's process state, on the device the model is on.

    kronfluence keeps one state per process and takes CUDA wherever it is; a model that was put elsewhere on purpose
    needs another one.
    """
    state = State(cpu=device.type == "cpu")
    if state.device.type != device.type:
        State._reset_state()
        state = State(cpu=device.type == "cpu")
    return state
