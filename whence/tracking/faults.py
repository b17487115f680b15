"""Errors on the way to MLflow: which are worth another attempt, and what users are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tenacity

from whence.errors import TrackingError, WhenceError
from whence.tracking.address import Address, Unreachable

T = TypeVar("T")


def retrying(action: Callable[[], T], seconds: float) -> T:
    """The result of ``action``, which is repeated for ``seconds`` while its failures are transient."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=2.0, jitter=0.2),
        reraise=True,
    )
    return attempts(action)


def is_transient(error: BaseException) -> bool:
    """Whether a later attempt may succeed."""
    if isinstance(error, WhenceError):
        return isinstance(error, Unreachable)
    return isinstance(error, Exception) and is_mlflow_error(error) and not is_refusal(error)


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """Raise :class:`TrackingError` in place of MLflow's own errors.

    The cause is left out: it may quote credentials.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, WhenceError) or not is_mlflow_error(error):
            raise
        raise TrackingError(
            f"tracking.uri: MLflow at {address.uri} refuses: {first_line(error)}",
            hint="check the address, the credentials "
            "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN) and the server's "
            "--allowed-hosts",
        ) from None


def none_if_absent(action: Callable[[], T]) -> Callable[[], T | None]:
    """``action`` with None as its result where MLflow says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    def look_up() -> T | None:
        try:
            return action()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    return look_up


def is_refusal(error: Exception) -> bool:
    """Whether MLflow has judged the request itself (bad name, missing run), so that repeating it is useless.

    Being unreachable, overloaded, or refusing the credentials at the moment is no refusal in this sense.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        status = getattr(getattr(error, "response", None), "status_code", 503)
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def refusal_text(error: Exception, what: str, size: int) -> str:
    """What MLflow has not taken and why; ``size`` in bytes, 0 for what is no file."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    shown = f" ({size:,} bytes)" if size else ""
    hint = "; a proxy before MLflow limits requests: raise its limit (nginx: client_max_body_size)"
    return f"{what}{shown}: {first_line(error).partition(' for url:')[0]}{hint if status == 413 else ''}"


def is_mlflow_error(error: BaseException) -> bool:
    """Whether MLflow, or the way to it, raised this."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException | OSError)


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    return f"{str(error) or type(error).__name__}".strip().splitlines()[0][:300]
