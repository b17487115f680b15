"""The errors Whence raises on purpose.

Every message says what was wrong (the value), where (key, file, column, row or module) and the way out, because
whoever reads it is usually looking at the log of a pod that is already gone.
"""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from urllib.parse import quote

SECRET_NAME = r"^(?!.*_(PATH|FILE)$).*(TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL)"  # of an environment variable
_HIDDEN = "[hidden]"
_SHORTEST = 6  # characters of a value that is looked for: a shorter one is part of other words
_SECRETS = {  # what looks like one wherever it comes from
    r"(?<=://)[^/\s@'\"]+(?=@)": _HIDDEN,  # user and password in an address
    r"(?i)\b(bearer|basic) +[\w+/=.~-]{16,}": rf"\1 {_HIDDEN}",
    r"(?i)((?:token|secret|password|signature|credential)(?:=|[\"'] *: *[\"']))[^\s&'\",;)}]+": rf"\1{_HIDDEN}",
    r"\b(hf_\w{10,}|AKIA[A-Z0-9]{16}|eyJ[\w-]+\.[\w-]+\.[\w-]*)": _HIDDEN,
}
FULL_DISK = "No space left on device"


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


class ProcessError(WhenceError):
    """One of the processes that share a task was killed."""


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


def scrub(text: str) -> str:
    """``text`` without secrets: the values of variables that hold some, and whatever looks like a key or password."""
    for name, value in os.environ.items():
        if re.search(SECRET_NAME, name) and not os.path.exists(value):
            for form in {value, value.strip(), quote(value.strip(), safe=""), repr(value)[1:-1]}:
                if len(form) >= _SHORTEST:
                    text = text.replace(form, _HIDDEN)
    for pattern, replacement in _SECRETS.items():
        text = re.sub(pattern, replacement, text)
    return text


def message_of(error: BaseException) -> str:
    """The error for people, without secrets: a WhenceError speaks for itself, anything else is named by its type."""
    if isinstance(error, WhenceError):
        return scrub(str(error))
    if FULL_DISK in str(error):  # also of libraries that raise an error of their own
        place = getattr(error, "filename", None) or f"where this was written ({os.getcwd()} or {tempfile.gettempdir()})"
        return f"{place}: {FULL_DISK}; free some, or put TMPDIR, general.work_dir or the output elsewhere"
    return scrub(f"{type(error).__name__}: {error}".strip().partition("\n")[0])


def trace_of(error: BaseException) -> str:
    """The stack trace, without secrets."""
    return scrub("".join(traceback.format_exception(error)))


def put_away(error: BaseException) -> str:
    """Write the stack trace to a new file that only this user reads; its path, in words."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="whence-error-", suffix=".log", delete=False) as file:
            file.write(trace_of(error))
    except OSError as refused:
        return f"the rest could not be written ({refused.strerror})"
    return f"the rest is in {file.name}"
