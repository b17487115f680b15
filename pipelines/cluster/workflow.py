"""The Argo Workflow of a run, read from the Kubernetes API where the user's kubeconfig allows it.

Kubeflow's own API says neither why a pod waits nor what a task failed of, and from some size of the run on (Argo
compresses the nodes above 1 MiB) no longer what its tasks do. The Workflow object does, until an hour after the end.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cached_property
from typing import Any

import kubernetes
import urllib3

from whence.errors import ClusterError

GROUP, VERSION, PLURAL = "argoproj.io", "v1alpha1", "workflows"
KUBEFLOW = "kubeflow"  # where the runs are when Kubeflow has one user
TIMEOUT = (5, 30)  # seconds to connect, to answer
ARCHIVED_LOG = "main-logs"  # Argo's name of the artifact


class Unreadable(ClusterError):
    """The Kubernetes API gives no answer to this user."""


class Workflows:
    """The Workflow objects of one namespace."""

    def __init__(self, namespace: str | None, kube_context: str | None) -> None:
        self.namespace = namespace or KUBEFLOW
        self.kube_context = kube_context

    def of_run(self, run_id: str) -> dict[str, Any] | None:
        """The Workflow of a run; None when there is none (any more).

        Raises:
            Unreadable: there is no kubeconfig, it leads to no cluster, or workflows are not for this user.
        """
        try:
            found = kubernetes.client.CustomObjectsApi(self._api).list_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                label_selector=f"pipeline/runid={run_id}",
                _request_timeout=TIMEOUT,
            )
        except (kubernetes.client.ApiException, urllib3.exceptions.HTTPError) as error:
            raise _unreadable(error, "list workflows.argoproj.io", self.namespace) from error
        return next(iter(found["items"]), None)

    def log(self, pod: str) -> str | None:
        """What a task's pod has printed; None when the pod is gone.

        Raises:
            Unreadable: the log is not for this user, or the pod has not begun.
        """
        try:
            answer = kubernetes.client.CoreV1Api(self._api).read_namespaced_pod_log(
                pod,
                self.namespace,
                container="main",
                _request_timeout=TIMEOUT,
                _preload_content=False,  # else a log that happens to be JSON comes back as Python writes it
            )
            return answer.data.decode("utf-8", "replace")
        except kubernetes.client.ApiException as error:
            if error.status == 404:
                return None
            raise _unreadable(error, f"read the log of pod {pod}", self.namespace) from error
        except urllib3.exceptions.HTTPError as error:
            raise _unreadable(error, f"read the log of pod {pod}", self.namespace) from error

    @cached_property
    def _api(self) -> kubernetes.client.ApiClient:
        configuration = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_kube_config(context=self.kube_context, client_configuration=configuration)
        except (kubernetes.config.ConfigException, OSError) as error:
            if self.kube_context is not None:
                raise ClusterError(f"--kube-context {self.kube_context}: {error}") from error
            try:
                kubernetes.config.load_incluster_config(client_configuration=configuration)
            except kubernetes.config.ConfigException:
                raise Unreadable("there is no kubeconfig") from error
        configuration.retries = urllib3.Retry(0)
        return kubernetes.client.ApiClient(configuration)


def nodes_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a Workflow, also where Argo has compressed them."""
    status = workflow.get("status", {})
    compressed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(compressed))) if compressed else status.get("nodes") or {}
    return list(nodes.values())


def pod_name(workflow: dict[str, Any], node: dict[str, Any]) -> str:
    """The pod of a node, by Argo's naming since 3.4: workflow, template, and the hash that ends the node's id."""
    name = workflow["metadata"]["name"]
    return f"{name}-{node['templateName']}-{node['id'].rpartition('-')[2]}"


def _unreadable(error: Exception, wish: str, namespace: str) -> Unreadable:
    status = getattr(error, "status", None)
    if status in (401, 403):
        return Unreadable(f"this kubeconfig may not {wish} in namespace {namespace} ({status})")
    return Unreadable(f"the Kubernetes API does not {wish} in namespace {namespace}: {status or type(error).__name__}")
