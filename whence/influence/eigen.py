"""Eigendecomposition of a covariance in double precision, and with a way out where it fails."""

from __future__ import annotations

import logging

import torch
from kronfluence.utils.constants import (
    ACTIVATION_COVARIANCE_MATRIX_NAME,
    ACTIVATION_EIGENVALUES_NAME,
    ACTIVATION_EIGENVECTORS_NAME,
    GRADIENT_COVARIANCE_MATRIX_NAME,
    GRADIENT_EIGENVALUES_NAME,
    GRADIENT_EIGENVECTORS_NAME,
    NUM_ACTIVATION_COVARIANCE_PROCESSED,
    NUM_GRADIENT_COVARIANCE_PROCESSED,
)

from whence.errors import FactorError

logger = logging.getLogger(__name__)

SIDES = (
    (
        ACTIVATION_COVARIANCE_MATRIX_NAME,
        NUM_ACTIVATION_COVARIANCE_PROCESSED,
        ACTIVATION_EIGENVECTORS_NAME,
        ACTIVATION_EIGENVALUES_NAME,
    ),
    (
        GRADIENT_COVARIANCE_MATRIX_NAME,
        NUM_GRADIENT_COVARIANCE_PROCESSED,
        GRADIENT_EIGENVECTORS_NAME,
        GRADIENT_EIGENVALUES_NAME,
    ),
)
JITTERS = (1e-10, 1e-8, 1e-6)  # relative to the mean eigenvalue


def symmetric_eigen(matrix: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (ascending) and eigenvectors of a covariance ``[n, n]`` in fp64.

    Solvers fail on some matrices of very low rank. A diagonal of 1e-10 to 1e-6 of the mean eigenvalue is then added,
    which shifts every eigenvalue by that much and leaves the eigenvectors alone; the log says so.

    Raises:
        FactorError: naming ``what``.
    """
    if not torch.isfinite(matrix).all():
        raise FactorError(f"the {what} holds NaN or Inf", hint="check the model's weights, or fit in float32")
    matrix = (matrix + matrix.T) / 2  # sums of products are symmetric only up to rounding
    mean = matrix.diagonal().mean().clamp(min=torch.finfo(matrix.dtype).tiny)
    for jitter in (0.0, *JITTERS):
        regularised = matrix + jitter * mean * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        try:
            values, vectors = torch.linalg.eigh(regularised)
        except torch.linalg.LinAlgError as error:
            logger.warning("eigendecomposition of the %s failed (%s); adding to its diagonal", what, error)
            continue
        if torch.isfinite(values).all() and torch.isfinite(vectors).all():
            if jitter:
                logger.warning("the %s was regularised by %g of its mean eigenvalue", what, jitter)
            return values, vectors
        logger.warning("eigendecomposition of the %s gave NaN or Inf; adding to its diagonal", what)
    raise FactorError(
        f"the {what} cannot be decomposed, even regularised by {JITTERS[-1]:g} of its mean eigenvalue",
        hint="fit on more examples, or leave the module out of factors.modules",
    )
