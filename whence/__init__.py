"""Whence did the model learn that? Training-data attribution, as a pipeline and as a library.

The library's names are loaded when they are first used, so that ``import whence`` takes no time (their types stand in
``__init__.pyi``). See docs/python.md.
"""

from __future__ import annotations

import atexit
import gc
import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Threads without work sleep: spinning, as is OpenMP's default, they take the processor from the one they wait for where
# another process computes, too. OpenMP reads this when torch is loaded, so it stands before all imports of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A process that ends looks once more for cycles among all its objects, of which torch and transformers bring a million:
# two seconds, after every command and every task of a run.
atexit.register(gc.freeze)

_HOMES = {
    "Scores": "whence.influence.results",
    "TrainedModel": "whence.models.trained",
    "fit_factors": "whence.influence.factors",
    "load_config": "whence.config_file",
    "load_run": "whence.run_folder",
    "make_index": "whence.influence.scores",
    "own_config": "whence.models.trained",
    "score": "whence.influence.scores",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whence' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
