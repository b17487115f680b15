"""The Kubeflow faces of the stages, one folder each: ``component.py`` and its README."""

from __future__ import annotations

import importlib
from typing import Any


def component_of(stage: str) -> Any:
    """The Kubeflow component of a stage (``kfp.dsl.PythonComponent``)."""
    return getattr(importlib.import_module(f"{__name__}.{stage}.component"), stage)
