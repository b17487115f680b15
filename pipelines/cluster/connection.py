"""One connection to Kubeflow Pipelines, found by kfp's own conventions; every request goes through :meth:`ask`."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kfp
import kfp_server_api
import tenacity
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from whence.errors import ClusterError
from whence.pipelines.cluster.faults import Asked, explain, is_transient, web_page

Answer = TypeVar("Answer")

ATTEMPTS = 6
PAUSE = tenacity.wait_exponential(multiplier=0.5, max=8)  # seconds: 0.5, 1, 2, 4, 8
TIMEOUT = (10, 30)  # seconds to connect, to answer
PAGE = 100  # entries of a list asked for at once
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Place:
    """Where Kubeflow Pipelines is and who asks, as given; what is None is left to kfp's conventions.

    Attributes:
        host: address of the API; else ``KF_PIPELINES_ENDPOINT``, the service in this cluster, or the kubeconfig.
        namespace: of the user's profile, where Kubeflow has several users.
        token: bearer token; else a projected service account token, IAP or cookies, as kfp finds them.
        kube_context: context of the kubeconfig.
    """

    host: str | None = None
    namespace: str | None = None
    token: str | None = field(default=None, repr=False)
    kube_context: str | None = None


class _Client(kfp.Client):
    def get_kfp_healthz(self, sleep_duration: int = 5) -> kfp_server_api.V2beta1GetHealthzResponse:
        """Nothing: kfp asks while it is set up, for 25 s and with stack traces; `Connection` asks once, in words."""
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)


class Connection:
    """An answering Kubeflow Pipelines API.

    Attributes:
        host: its address.
        namespace: whose pipelines and runs are meant; None where Kubeflow has one user.
        pipelines, uploads, experiments, runs, schedules: the generated services; call them through :meth:`ask`.
    """

    def __init__(self, place: Place) -> None:
        """Connect.

        Raises:
            ClusterError: there is no address, nobody or something else answers there, or the login is refused.
        """
        client = _make_client(place)
        self._api = client._run_api.api_client
        self.host = str(self._api.configuration.host)
        self._ui = str(client._get_url_prefix()).rstrip("/")
        self.namespace: str | None = None
        self.pipelines, self.uploads = client._pipelines_api, client._upload_api
        self.experiments, self.runs, self.schedules = client._experiment_api, client._run_api, client._recurring_run_api
        health = self.ask(None, client._healthz_api.healthz_service_get_healthz)
        self.namespace = place.namespace or client.get_user_namespace() or None
        if health.multi_user and self.namespace is None:
            self.namespace = _pod_namespace()

    def ask(
        self,
        subject: str | None,
        request: Callable[..., Answer],
        *arguments: Any,
        done: Callable[[], Answer | None] | None = None,
        **options: Any,
    ) -> Answer:
        """Send one request; the server's own faults are waited out.

        Args:
            subject: what it is about, for errors; None when it is only what the namespace holds.
            request: a method of one of the services.
            done: for requests that must not be sent twice: looks whether the last attempt did its work in spite of
                the fault, before there is another.

        Raises:
            Unanswered: nobody answers, or the server went on failing.
            ClusterError: the login or the namespace is refused, or a web page answers.
            PipelineError: what was asked for is not there or not accepted.
        """
        asked = Asked(self.host, self.namespace, subject)
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=PAUSE,
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            reraise=True,
        )
        try:
            for attempt in attempts:
                with attempt:
                    if done is not None and attempt.retry_state.attempt_number > 1:
                        there = done()
                        if there is not None:
                            return there
                    return self._send(asked, request, *arguments, **options)
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
            raise explain(error, asked) from error
        raise AssertionError("unreachable: tenacity raises the last error")

    def link(self, path: str) -> str:
        """Where ``path`` is in Kubeflow's UI."""
        if self._ui.startswith("http"):
            return f"{self._ui}/#/{path}"
        return f"#/{path} (a path of Kubeflow's UI; with KF_PIPELINES_UI_ENDPOINT set, a link)"

    def list(self, request: Callable[..., Any], entries: str, **options: Any) -> list[Any]:
        """All entries of a list, page by page."""
        found: list[Any] = []
        token = ""
        while True:
            page = self.ask(None, request, page_token=token, page_size=PAGE, **options)
            found += getattr(page, entries) or []
            token = page.next_page_token or ""
            if not token:
                return found

    def _send(self, asked: Asked, request: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """One request. The generated client takes a web page for an empty answer, or stumbles over it: look first."""
        self._api.last_response = None
        try:
            answer = request(*arguments, _request_timeout=TIMEOUT, **options)
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError):
            raise
        except (ValueError, TypeError, AttributeError):
            self._refuse_page(asked)
            raise
        self._refuse_page(asked)
        return answer

    def _refuse_page(self, asked: Asked) -> None:
        response = self._api.last_response
        if response is not None and not str(response.data).lstrip().startswith("{"):
            raise web_page(str(response.data), response.urllib3_response.geturl(), asked)


def _make_client(place: Place) -> _Client:
    host = place.host or os.environ.get("KF_PIPELINES_ENDPOINT") or None
    if host is not None and "@" in urlsplit(host if "//" in host else f"//{host}").netloc:
        raise ClusterError("address: a user name or password in it is not sent; give a token in KF_PIPELINES_TOKEN")
    for variable in ("KF_PIPELINES_SA_TOKEN_PATH", "SSL_CERT_FILE"):
        if not Path(os.environ.get(variable) or __file__).is_file():
            raise ClusterError(f"login: {variable} names {os.environ[variable]}, which is no file; correct or unset it")
    # kfp reads the first only inside of a cluster without an address; it is as good a token with one.
    projected = ServiceAccountTokenVolumeCredentials() if os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") else None
    # kfp warns of servers before 2.0 every time, and prints that there is no kubeconfig.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        client = _Client(
            host=host,
            existing_token=place.token,
            kube_context=place.kube_context,
            credentials=projected,
            ssl_ca_cert=os.environ.get("SSL_CERT_FILE") or None,
        )
    configuration = client._run_api.api_client.configuration
    if host is None and configuration.host == kfp_server_api.Configuration().host:
        raise ClusterError(
            "address: none is known: give --host or set KF_PIPELINES_ENDPOINT (e.g. http://localhost:8888 after "
            "`kubectl port-forward -n kubeflow svc/ml-pipeline 8888`), or have a kubeconfig that reaches the cluster"
        )
    _keep_host(configuration)
    # `ask` does the repeating; left alone urllib3 would do so too, at once and for each of ours.
    pool = client._run_api.api_client.rest_client.pool_manager
    pool.connection_pool_kw["retries"] = urllib3.Retry(connect=0, read=0, other=0, redirect=5)
    return client


def _keep_host(configuration: Any) -> None:
    """Leave the address alone when a token is renewed.

    The hook of a kubeconfig, called before every request, sets it back to the Kubernetes API's, without the path to
    Kubeflow that kfp has put behind it.
    """
    host, renew = configuration.host.rstrip("/"), configuration.refresh_api_key_hook

    def renew_token(renewed: Any) -> None:
        renew(renewed)  # puts the host back, and itself in this function's place
        renewed.host, renewed.refresh_api_key_hook = host, renew_token

    configuration.host = host
    if renew is not None:
        configuration.refresh_api_key_hook = renew_token


def _pod_namespace() -> str:
    if POD_NAMESPACE.is_file():
        return POD_NAMESPACE.read_text(encoding="utf-8").strip()
    raise ClusterError("namespace: this Kubeflow has several users; give that of your profile with --namespace")
