"""The stages, one module each, which holds the stage's declaration as ``STAGE``.

The modules are imported to list commands and to compile pipelines, so what is slow to import (torch, transformers,
pandas, matplotlib) is imported inside the functions that use it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from graphlib import TopologicalSorter

from whence.config import Config
from whence.errors import ConfigError
from whence.running.declaration import Stage


def stage(name: str) -> Stage:
    """The declaration of a stage."""
    found: Stage = importlib.import_module(f"{__name__}.{name}").STAGE
    return found


@cache
def stages() -> dict[str, Stage]:
    """All stages by name, each after those whose outputs it takes."""
    found = {module.name: stage(module.name) for module in pkgutil.iter_modules(__path__)}
    makers = {artifact.name: name for name, one in found.items() for artifact in one.outputs}
    before = {
        name: {makers[artifact.name] for artifact in one.inputs if artifact.name in makers} - {name}
        for name, one in found.items()
    }
    return {name: found[name] for name in TopologicalSorter(before).static_order()}


def check_stage_names(config: Config) -> None:
    """Resources are given to stages that there are.

    Raises:
        ConfigError: naming the stage that there is not.
    """
    for name in config.cluster.stages:
        if name not in stages():
            raise ConfigError(f"cluster.stages: there is no stage {name!r}; stages are {', '.join(stages())}")
