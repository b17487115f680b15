"""What went wrong between here and Kubeflow, in words: the address, the login, the namespace, or what was asked for."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import urllib3
from kfp_server_api import ApiException

from whence.errors import ClusterError, PipelineError, WhenceError

TRANSIENT = {429, 500, 502, 503, 504}  # what a restart, a rollout or a busy gateway answers
EXCERPT = 300  # characters of a server's message


class Unanswered(ClusterError):
    """No answer for the moment; the same request may succeed later."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment: the server's own faults, and answers that broke off."""
    if isinstance(error, ApiException):
        return error.status in TRANSIENT
    return isinstance(error, (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError)) or (
        isinstance(error, urllib3.exceptions.MaxRetryError) and not _never_connected(error)
    )


def explain(error: Exception, address: str, namespace: str | None, subject: str | None) -> WhenceError:
    """The error to raise instead of one of the HTTP client's.

    Args:
        error: of the HTTP client.
        address: of the API, without credentials.
        namespace: of the request, if it names one.
        subject: what was asked for, e.g. ``run 5b1e``; None when it is only what the namespace holds.
    """
    if isinstance(error, ApiException) and error.status:
        return _refused(error, address, namespace, subject)
    reason = _reason(error)
    if "certificate" in reason.lower():
        return ClusterError(
            f"address {address}: its certificate is not trusted: {reason}; name the file of your authorities in "
            "SSL_CERT_FILE"
        )
    if "ssl" in reason.lower():
        return ClusterError(f"address {address}: no secure connection: {reason}; is it http:// there?")
    return Unanswered(
        f"address {address}: no answer: {reason}; check --host and KF_PIPELINES_ENDPOINT, and that a port-forward "
        "or VPN is up"
    )


def web_page(text: str, url: str | None, address: str) -> ClusterError:
    """The error for an answer that is a web page: a login in front of the API, or the wrong address."""
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    shown = f" ({_line(html.unescape(title[1]))})" if title else ""
    elsewhere = url is not None and "://" in url and not url.startswith(address)
    if elsewhere or re.search(r"log.?in|sign.?in|password|dex|oauth", text, re.IGNORECASE):
        return ClusterError(
            f"login at {address}: a login page{shown} stands before the Kubeflow Pipelines API; give a token in "
            "KF_PIPELINES_TOKEN, or sign in with kfp's own ways (KF_PIPELINES_IAP_OAUTH2_CLIENT_ID, "
            "~/.config/kfp/context.json)"
        )
    return ClusterError(
        f"address {address}: answers, but not as a Kubeflow Pipelines API{shown}; under Kubeflow's dashboard it is "
        "https://HOST/pipeline"
    )


def _refused(error: ApiException, address: str, namespace: str | None, subject: str | None) -> WhenceError:
    said = _message(error)
    where = f" in namespace {namespace}" if namespace else ""
    if error.status == 401:
        return ClusterError(
            f"login at {address}: 401, {said}; the token is missing or has expired: put a fresh one in "
            "KF_PIPELINES_TOKEN"
        )
    if error.status == 403:
        return ClusterError(
            f"login at {address}: 403, {said}; this user may not do that{where} (a namespace that does not exist is "
            "refused the same way): check --namespace, or ask for the role"
        )
    if error.status in TRANSIENT:
        return Unanswered(f"address {address}: the server fails: {error.status}, {said}; try again later")
    if error.status == 404 and subject is None and namespace is None:
        return ClusterError(
            f"address {address}: answers 404, so it is no Kubeflow Pipelines API; under Kubeflow's dashboard it is "
            "https://HOST/pipeline"
        )
    if subject is None or "namespace" in said.lower():
        return ClusterError(
            f"namespace {namespace or '(none)'}: {error.status}, {said}; give the namespace of your Kubeflow "
            "profile with --namespace"
        )
    return PipelineError(f"{subject}{where}: {error.status}, {said}")


def _message(error: ApiException) -> str:
    """The server's own words: of KFP's JSON the message, else the first line, never a whole page."""
    body: Any = error.body or ""
    try:
        parsed = json.loads(body)
        said = next(parsed[key] for key in ("error_message", "message", "error") if parsed.get(key))
    except (ValueError, AttributeError, StopIteration):
        said = re.sub(r"<[^>]*>", " ", str(body)) or error.reason
    return _line(str(said))


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT]}…"


def _never_connected(error: urllib3.exceptions.MaxRetryError) -> bool:
    kinds = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.SSLError)
    return isinstance(error.reason, kinds)


def _reason(error: Exception) -> str:
    """The innermost cause: ``Connection refused`` instead of the pool, the path and the number of tries."""
    reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    cause = reason.__cause__ or reason.__context__
    return _line(str(getattr(cause, "strerror", None) or getattr(error, "reason", None) or reason))
