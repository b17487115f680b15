"""Fingerprints of what factors depend on, and the refusal to use them with anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from whence.errors import FactorError
from whence.files import digest_of

if TYPE_CHECKING:
    from torch import nn


def model_fingerprint(model: nn.Module) -> str:
    """sha256 (hex) over the names, precisions, shapes and values of all weights."""
    from whence.influence.partitions import tensors_digest  # imports torch, which other fingerprints do without

    return tensors_digest(sorted(model.state_dict().items()))


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a JSON value, independent of the order of keys."""
    return digest_of(value)


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str, way_out: str) -> None:
    """Compare what is at hand with what a file was made with.

    Raises:
        FactorError: naming every part that differs, with both values.
    """
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing:
        parts = "; ".join(f"{key}: {_brief(expected[key])} then, {_brief(found.get(key))} now" for key in differing)
        raise FactorError(f"{what} cannot be used here, because {parts}. {way_out}")


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(map(str, value[:2]))}, ...)" if len(value) > 2 else ", ".join(map(str, value))
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
