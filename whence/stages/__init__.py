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
    declaration: Stage = importlib.import_module(f"{__name__}.{name}").STAGE
    return declaration


@cache
def stages() -> dict[str, Stage]:
    """All stages by name, each after those whose outputs it takes."""
    declarations = {module.name: stage(module.name) for module in pkgutil.iter_modules(__path__)}
    makers = {artifact.name: name for name, maker in declarations.items() for artifact in maker.outputs}
    predecessors = {
        name: {makers[artifact.name] for artifact in taker.inputs if artifact.name in makers} - {name}
        for name, taker in declarations.items()
    }
    return {name: declarations[name] for name in TopologicalSorter(predecessors).static_order()}


def check_stage_names(config: Config) -> None:
    """Check that ``cluster.stages`` names stages that exist.

    Raises:
        ConfigError: it names another.
    """
    for name in config.cluster.stages:
        if name not in stages():
            raise ConfigError(f"cluster.stages: there is no stage {name!r}", hint=f"stages are {', '.join(stages())}")
