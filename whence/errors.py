"""The errors Whence raises on purpose.

Every message says what was wrong (the value), where (key, file, column, row or module) and the way out, because
whoever reads it is usually looking at the log of a pod that is already gone.
"""

from __future__ import annotations


class WhenceError(Exception):
    """Base of every error a user can do something about; the CLI prints it without a stack trace.

    Attributes:
        hint: the way out, which stands at the end of the message.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return "; ".join(filter(None, (super().__str__(), self.hint)))


class ConfigError(WhenceError):
    """A setting is unknown, of the wrong type, out of range, or impossible together with another."""


class DataError(WhenceError):
    """A dataset, file, row or prompt cannot be used as it is."""


class ModelError(WhenceError):
    """A model or tokenizer cannot be found, read or combined with the settings."""


class FactorError(WhenceError):
    """Influence factors are missing, damaged, not finite, or belong to another model, dataset or arguments."""


class ResourceError(WhenceError):
    """The machine has too little memory, disk or accelerator for the work; raised before the work starts."""


class TrackingError(WhenceError):
    """The MLflow tracking server cannot be reached or refuses the request."""


class PromotionError(WhenceError):
    """A model version cannot become the champion: the evidence is of another one, or it was rolled back."""


class StorageError(WhenceError):
    """S3-compatible storage cannot be reached, refuses the request, or holds damaged data."""


class ClusterError(WhenceError):
    """Kubeflow Pipelines cannot be reached, or refuses who asks; says whether address, login or namespace."""


class PipelineError(WhenceError):
    """A pipeline or one of its stages failed, or cannot be compiled, submitted or found."""
