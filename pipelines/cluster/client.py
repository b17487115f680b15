"""kfp's client with errors in words; every request goes through :meth:`Client.ask`.

Address, login and namespace are found by kfp's own conventions.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kfp
import kfp_server_api
import tenacity
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from requests.utils import get_environ_proxies, select_proxy

from whence.environment import authorities
from whence.errors import ClusterError
from whence.pipelines.cluster.faults import explain, is_transient, web_page

Answer = TypeVar("Answer")

ATTEMPTS = 6
PAUSE = tenacity.wait_exponential(multiplier=0.5, max=8)  # seconds: 0.5, 1, 2, 4, 8
TIMEOUT = (10, 30)  # seconds to connect, to answer
PAGE = 100  # entries of a list per request

logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each retry would be a warning on the terminal


class Client(kfp.Client):
    """An answering Kubeflow Pipelines API.

    Attributes:
        address: of the API.
        namespace: whose pipelines and runs are meant; None where Kubeflow has one user.
    """

    def __init__(
        self,
        host: str | None = None,
        namespace: str | None = None,
        token: str | None = None,
        kube_context: str | None = None,
    ) -> None:
        """Connect.

        Args:
            host: address of the API; else ``KF_PIPELINES_ENDPOINT``, the service in this cluster, or the kubeconfig.
            namespace: of the user's profile, where Kubeflow has several users.
            token: bearer token; else a projected service account token, IAP or cookies, as kfp finds them.
            kube_context: context of the kubeconfig.

        Raises:
            ClusterError: there is no address, nobody or something else answers there, or the login is refused.
        """
        host = host or os.environ.get("KF_PIPELINES_ENDPOINT") or None
        _check_environment(host or "")
        self.namespace = namespace
        self._ui = (os.environ.get("KF_PIPELINES_UI_ENDPOINT") or host or "").rstrip("/")
        self._health: kfp_server_api.V2beta1GetHealthzResponse | None = None
        # kfp reads it only inside of a cluster without an address; it is as good a token with one.
        projected = ServiceAccountTokenVolumeCredentials() if os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") else None
        # kfp warns of servers before 2.0 every time, and prints that there is no kubeconfig.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            super().__init__(
                host=host,
                existing_token=token and token.strip(),
                kube_context=kube_context,
                credentials=projected,
                proxy=select_proxy(host, get_environ_proxies(host)) if host else None,
                ssl_ca_cert=authorities("Kubeflow"),
            )
        health = self.get_kfp_healthz()
        self.namespace = namespace or self.get_user_namespace() or None
        if health.multi_user and self.namespace is None:
            raise ClusterError(
                "namespace: this Kubeflow has several users", hint="give that of your profile with --namespace"
            )

    @property
    def api_client(self) -> kfp_server_api.ApiClient:
        """The HTTP client that kfp's services share."""
        return self.runs.run_service_get_run.__self__.api_client

    @property
    def address(self) -> str:
        return str(self.api_client.configuration.host)

    def get_kfp_healthz(self, sleep_duration: int = 5) -> kfp_server_api.V2beta1GetHealthzResponse:
        """Whether Kubeflow answers; kfp looks while it is set up, and by itself would for 25 s, with stack traces."""
        if self._health is None:
            configuration = self.api_client.configuration
            if configuration.host == kfp_server_api.Configuration().host:
                raise ClusterError(
                    "address: none is known: give --host or set KF_PIPELINES_ENDPOINT (e.g. http://localhost:8888 "
                    "after `kubectl port-forward -n kubeflow svc/ml-pipeline 8888`), or have a kubeconfig that reaches "
                    "the cluster"
                )
            _keep_host(configuration)
            self._health = self.ask(None, self.healthzs.healthz_service_get_healthz, _request_timeout=TIMEOUT)
        return self._health

    def ask(self, subject: str | None, request: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """Send one request; the server's own faults are waited out.

        Args:
            subject: what it is about, for errors; None when it is only what the namespace holds.
            request: a method of this client or of one of its services.

        Raises:
            Unanswered: nobody answers, or the server went on failing.
            ClusterError: the login or the namespace is refused, or a web page answers.
            PipelineError: the subject is not there or not accepted.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=PAUSE,
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            reraise=True,
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # kfp prints links of its own
                answer = attempts(request, *arguments, **options)
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
            raise explain(error, self.address, self.namespace, subject) from error
        response = self.api_client.last_response
        if isinstance(response.data, str) and not response.data.lstrip().startswith("{"):  # kfp takes it for empty
            raise web_page(response.data, response.urllib3_response.geturl(), self.address)
        return answer

    def create(self, subject: str, find: Callable[[], set[str]], request: Callable[[], str]) -> str:
        """Create once: a fault may have lost the answer and not the work, so it is looked for before a retry.

        Only then: somebody else may create one of the same name in the same second.

        Args:
            find: the ids of all there are of its name.
            request: creates it and returns its id.
        """
        before, tried = find(), False

        def attempt() -> str:
            nonlocal tried
            made = next(iter(find() - before), None) if tried else None
            tried = True
            return made or request()

        return self.ask(subject, attempt)

    def list_all(self, entries: str, **options: Any) -> list[Any]:
        """All ``pipelines``, ``pipeline_versions``, ``runs`` or ``recurring_runs``, page by page."""
        if entries != "pipeline_versions":
            options["namespace"] = self.namespace
        found: list[Any] = []
        token = ""
        while True:
            page = self.ask(None, getattr(self, f"list_{entries}"), page_token=token, page_size=PAGE, **options)
            found += getattr(page, entries) or []
            token = page.next_page_token or ""
            if not token:
                return found

    def ids(self, entries: str, name: str, **options: Any) -> set[str]:
        """The ids of those of that name."""
        found = self.list_all(entries, filter=equals(display_name=name), **options)
        return {getattr(entry, f"{entries.removesuffix('s')}_id") for entry in found}

    def link(self, path: str) -> str:
        """Where ``path`` is in Kubeflow's UI."""
        if self._ui.startswith("http"):
            return f"{self._ui}/#/{path}"
        return f"#/{path} (a path of Kubeflow's UI; with KF_PIPELINES_UI_ENDPOINT set, a link)"


def equals(**values: str) -> str:
    """The filter of a list for the entries with these values."""
    predicates = [{"operation": "EQUALS", "key": key, "string_value": value} for key, value in values.items()]
    return json.dumps({"predicates": predicates})


def _check_environment(host: str) -> None:
    if "@" in urlsplit(host if "//" in host else f"//{host}").netloc:
        raise ClusterError(
            "address: a user name or password in it is not sent", hint="give a token in KF_PIPELINES_TOKEN"
        )
    variable = "KF_PIPELINES_SA_TOKEN_PATH"
    if not Path(os.environ.get(variable) or __file__).is_file():
        raise ClusterError(
            f"login: {variable} names {os.environ[variable]}, which is no file", hint="correct or unset it"
        )


def _keep_host(configuration: kfp_server_api.Configuration) -> None:
    """Leave the address alone when a token is renewed.

    The hook of a kubeconfig, called before every request, sets it back to the Kubernetes API's, without the path to
    Kubeflow that kfp has put behind it.
    """
    host, renew = configuration.host.rstrip("/"), configuration.refresh_api_key_hook

    def renew_token(renewed: kfp_server_api.Configuration) -> None:
        renew(renewed)  # puts the host back, and itself in this function's place
        renewed.host, renewed.refresh_api_key_hook = host, renew_token

    configuration.host = host
    if renew is not None:
        configuration.refresh_api_key_hook = renew_token
