"""What ``factors.json`` says of the factors beside it. Needs no torch, so that factors can be inspected without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from whence.errors import FactorError
from whence.files import digest_of
from whence.influence import layout


class Shape(NamedTuple):
    """A tracked module's gradient: ``outputs x inputs``, the bias counted as one more input."""

    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        return self.outputs * self.inputs


class FitIdentity(BaseModel):
    """Everything that decides the values of factors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    strategy: str
    modules: list[str]
    shapes: dict[str, Shape]  # outputs x inputs of each module's gradient, the bias counted as an input
    num_examples: int
    num_tokens: int
    model: str  # fingerprint of the weights
    tokenizer: str  # fingerprint of the tokenizer
    data: str  # fingerprint of token ids and loss mask
    loss_on: str
    arguments: dict[str, Any]  # kronfluence's own
    seed: int

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the identity alone, also where more is known."""
        return digest_of(self.model_dump(include=set(FitIdentity.model_fields)))


class Coverage(BaseModel):
    """How much of a model the influence is over, in numbers of parameters.

    Attributes:
        kinds: what the tracked modules are called beside their layer.
        tracked: parameters of the tracked modules; ``tracked_mlp`` those that are matrices of MLPs.
        fused: names of experts' weights of three dimensions, which cannot be tracked.
    """

    kinds: list[str]
    tracked: int
    parameters: int
    tracked_mlp: int
    mlp_parameters: int
    fused: list[str]


class FactorsInfo(FitIdentity):
    """What ``factors.json`` says of the factors beside it."""

    coverage: Coverage
    shared_inputs: dict[str, str] = {}  # to a module the first one that sees the same input: they share its factors
    size_bytes: int
    seconds: dict[str, float]
    versions: dict[str, str]


def load_factors_info(folder: Path) -> FactorsInfo:
    """Read ``factors.json``.

    Raises:
        FactorError: it is missing (the fit was not finished) or cannot be read.
    """
    path = folder / layout.INFO
    try:
        return FactorsInfo.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its content is not what this version writes"
        raise FactorError(f"cannot read {path}: {reason}", hint="fit the factors again") from error


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str, hint: str) -> None:
    """Compare what is at hand with what a file was made with.

    Raises:
        FactorError: naming every entry that differs, with both values.
    """
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing:
        reasons = "; ".join(f"{key}: {_brief(expected[key])} then, {_brief(found.get(key))} now" for key in differing)
        raise FactorError(f"{what} cannot be used here, because {reasons}. {hint}")


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(map(str, value[:2]))}, ...)" if len(value) > 2 else ", ".join(map(str, value))
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
