"""Which modules of a model are tracked: the settings' patterns against what the model has."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from whence.config import Factors
from whence.errors import ConfigError, FactorError
from whence.influence.info import Coverage
from whence.influence.layout import layer_of, short_names
from whence.influence.products import by_example
from whence.models.adapters import SIDES

logger = logging.getLogger(__name__)

SUPPORTED = (nn.Linear, Conv1D)
MLP = "mlp"
_MIXES_TOKENS = re.compile(r"attn|attention|mamba|conv|mixer")


def select_modules(model: nn.Module, factors: Factors) -> list[str]:
    """Names of the modules that ``factors.modules`` and ``factors.layers`` choose, in the model's order.

    The word ``mlp`` stands for all linear modules of the layers but those of attention and the like, or, where the
    model has an adapter, for the adapter's matrices, which are what was trained. A pattern is the
    last part of a module's name (``up_proj``) or a glob over the whole name (``*.mlp.*``). Adapters
    are chosen by their side: ``lora_A`` also is peft's ``up_proj.lora_A.default``. Works on models without weights
    (the meta device) too.

    Raises:
        ConfigError: a pattern or layer matches nothing, matches a type of module that cannot be tracked, or a module
            that shares its weight with another one.
    """
    leaves = {
        name: module
        for name, module in model.named_modules()
        if not any(module.children()) and any(True for _ in module.parameters())
    }
    layers = None if factors.layers == "all" else _existing_layers(leaves, factors.layers)
    called = {name: _last_parts(model, name) for name in leaves}
    chosen: set[str] = set()
    adapter = {name for name, module in leaves.items() if isinstance(module, SUPPORTED) and _in_adapter(name)}
    mlp = adapter or {name for name, module in leaves.items() if isinstance(module, SUPPORTED) and _in_mlp(name)}
    for pattern in [MLP] if factors.modules == MLP else factors.modules:
        named = {name for name in leaves if pattern in called[name] or fnmatchcase(name, pattern)}
        matched = mlp if factors.modules == MLP else named
        if not matched:
            what_exists = _what_exists(model, leaves, called)
            raise ConfigError(f"factors.modules: {pattern!r} matches none of the model's modules", hint=what_exists)
        kept = {name for name in matched if layers is None or layer_of(name) in layers}
        if not kept:
            raise ConfigError(
                f"factors.modules: {pattern!r} matches {_some(matched)}, but none of them is in "
                f"factors.layers {factors.layers}",
                hint="add their layers, or set factors.layers to all",
            )
        chosen |= kept
    _refuse_unsupported(model, leaves, called, chosen)
    _refuse_shared(model, chosen)
    return [name for name in leaves if name in chosen]


def require_examples(model: PreTrainedModel, modules: Sequence[str]) -> None:
    """Refuse modules whose gradient on an example cannot be told: those not used once, and on all of its tokens.

    The model reads a small batch, which takes no time on the meta device. Where the way through a model depends on
    values (experts that tokens are routed to) it cannot be followed there; then the fit is what refuses them.

    Raises:
        ConfigError: naming the module.
    """
    shape, used = (2, 3), Counter[str]()

    def look(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        by_example(inputs[0], shape, name)
        used[name] += 1

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
        for name in modules
    ]
    ids = torch.zeros(shape, dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except FactorError as error:
        raise ConfigError(f"factors.modules: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        logger.info("the way through the model depends on values, so its modules were not looked at: %s", error)
        return
    finally:
        for hook in hooks:
            hook.remove()
    wrong = {name for name in modules if used[name] != 1}
    if wrong:
        raise ConfigError(
            f"factors.modules: {_some(wrong)} are not used once in a forward pass, so their gradients on an example "
            "cannot be told",
            hint="leave them out",
        )


def _last_parts(model: nn.Module, name: str) -> list[str]:
    """What patterns may call a module: the last part of its name, before it that of the ``ModuleDict`` it is in."""
    parent, _, last = name.rpartition(".")
    keyed = isinstance(model.get_submodule(parent), nn.ModuleDict)
    return [parent.rsplit(".", 1)[-1], last] if keyed else [last]


def coverage(model: nn.Module, modules: Sequence[str]) -> Coverage:
    """How much of a model the influence over ``modules`` is over."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}  # each once, if tied
    chosen = {name for name in sizes if name.rpartition(".")[0] in set(modules)}
    mlp = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and _in_mlp(name)}
    return Coverage(
        kinds=list(dict.fromkeys(short_names(modules).values())),
        tracked=sum(sizes[name] for name in chosen),
        parameters=sum(sizes.values()),
        tracked_mlp=sum(sizes[name] for name in chosen & mlp),
        mlp_parameters=sum(sizes[name] for name in mlp),
        fused=fused_parameters(model),
    )


def fused_parameters(model: nn.Module) -> list[str]:
    """Names of the weights of three dimensions, a matrix for every expert of a mixture, that no linear module has."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv1d)
    ]


def _in_mlp(name: str) -> bool:
    """Whether a module or parameter of a layer is of none of the kinds that mix tokens."""
    return layer_of(name) is not None and not _MIXES_TOKENS.search(name)


def _in_adapter(name: str) -> bool:
    return any(side in f".{name}." for side in SIDES)


def _existing_layers(leaves: dict[str, nn.Module], wanted: list[int]) -> set[int]:
    existing = {layer for name in leaves if (layer := layer_of(name)) is not None}
    missing = sorted(set(wanted) - existing)
    if missing:
        there = f"layers {min(existing)} to {max(existing)}" if existing else "no numbered layers"
        raise ConfigError(f"factors.layers: {missing} are not in the model, which has {there}")
    return set(wanted)


def _refuse_unsupported(
    model: nn.Module, leaves: dict[str, nn.Module], called: dict[str, list[str]], chosen: set[str]
) -> None:
    wrong = {name for name in chosen if not isinstance(leaves[name], SUPPORTED)}
    if wrong:
        kinds = sorted({type(leaves[name]).__name__ for name in wrong})
        raise ConfigError(
            f"factors.modules: {_some(wrong)} cannot be tracked, being of type {', '.join(kinds)}",
            hint=f"only {', '.join(kind.__name__ for kind in SUPPORTED)} can. {_what_exists(model, leaves, called)}",
        )


def _refuse_shared(model: nn.Module, chosen: set[str]) -> None:
    """A tied weight has gradients from both of its uses, of which a tracked linear layer sees only one."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        users = sorted({name.rpartition(".")[0] for name in names})
        tracked = [user for user in users if user in chosen]
        if len(users) > 1 and tracked:
            others = [user for user in users if user != tracked[0]]
            raise ConfigError(
                f"factors.modules: {tracked[0]} shares its weight with {_some(set(others))}, so its gradient is "
                "only a part of the weight's",
                hint="leave it out, or use a model with untied weights",
            )


def _what_exists(model: nn.Module, leaves: dict[str, nn.Module], called: dict[str, list[str]]) -> str:
    """The distinct short names of what can be tracked, what a user would write in the setting; and what cannot be."""
    fused = fused_parameters(model)
    fused_text = f"; its experts are fused parameters, which cannot be tracked ({_some(set(fused))})" if fused else ""
    names = sorted({called[name][0] for name, module in leaves.items() if isinstance(module, SUPPORTED)})
    return f"the model has {', '.join(names) or 'nothing that can be tracked'}{fused_text}"


def _some(names: set[str], at_most: int = 3) -> str:
    shown = sorted(names)[:at_most]
    return ", ".join(shown) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
