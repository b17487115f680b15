"""Where factors lie on disk: kronfluence's own names. Needs no torch, so that factors can be inspected without.

Importing kronfluence imports torch, so the names of its that are needed without it stand here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from whence.errors import FactorError

INFO = "factors.json"
ARGUMENTS = "factor_arguments.json"

FACTOR_SAVE_PREFIX = "factors_"
ACTIVATION_EIGENVALUES_NAME = "activation_eigenvalues"
GRADIENT_EIGENVALUES_NAME = "gradient_eigenvalues"
LAMBDA_MATRIX_NAME = "lambda_matrix"
NUM_LAMBDA_PROCESSED = "num_lambda_processed"
HEURISTIC_DAMPING_SCALE = 0.1


def factors_folder(output: Path, strategy: str) -> Path:
    """Where kronfluence's ``Analyzer(output.name, output_dir=output.parent)`` keeps factors named ``strategy``."""
    return output / f"{FACTOR_SAVE_PREFIX}{strategy}"


def factor_file(folder: Path, factor: str) -> Path:
    return folder / f"{factor}.safetensors"


def layer_of(name: str) -> int | None:
    """The transformer layer a module belongs to: ``model.layers.3.mlp.up_proj`` -> 3; None for ``lm_head``."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """What modules are called beside their layer: the last part of the name, or as many as tell a layer's apart.

    ``model.layers.3.mlp.up_proj`` is ``up_proj``; GPT-2 has an ``attn.c_proj`` and an ``mlp.c_proj`` in every layer.
    """
    short = {}
    for name in names:
        others = [other for other in names if other != name and layer_of(other) == layer_of(name)]
        parts = name.split(".")
        suffixes = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        alone = (last for last in suffixes if not any(f".{other}".endswith(f".{last}") for other in others))
        short[name] = next(alone, name)
    return short


def load_tensor(folder: Path, factor: str, module: str) -> Any:
    """One module's torch tensor of one factor, without reading the others.

    Raises:
        FactorError: the file is missing or damaged.
    """
    with opened(factor_file(folder, factor), "pt") as file:
        return file.get_tensor(module)


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    """A factor file open for reading, its tensors as those of ``framework`` (``pt`` or ``numpy``).

    Raises:
        FactorError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise FactorError(
            f"the factor file {path} is missing or damaged ({error})", hint="fit the factors again"
        ) from error
