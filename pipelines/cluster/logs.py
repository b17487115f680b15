"""What a task has printed: from its pod, or from the log that Argo archived when the pod ended."""

from __future__ import annotations

import base64

from whence.errors import PipelineError, WhenceError
from whence.pipelines.cluster.client import TIMEOUT, Client
from whence.pipelines.cluster.progress import RunView
from whence.pipelines.cluster.tasks import Node, Task, failed_tasks
from whence.pipelines.cluster.workflow import ARCHIVED_LOG, Unreadable, pod_name

ARTIFACT = "/apis/v2beta1/runs/{run_id}/nodes/{node_id}/artifacts/{artifact_name}:read"


def task_log(view: RunView, name: str | None) -> tuple[Task, str]:
    """A task's log, by default of the task that failed, else of the last that began.

    Raises:
        PipelineError: there is no such task, it has no pod yet, or its log is gone or out of reach.
    """
    _, tasks = view.look()
    task = _choose(tasks, name, view.run_id)
    if task.node is None:
        raise PipelineError(f"task {task.name}: has no pod yet ({task.state.lower()})")
    refused = view.unreadable or "its Workflow object is gone"
    if view.workflow is not None:
        try:
            text = view.workflows.log(pod_name(view.workflow, task.node))
            if text is not None:
                return task, text
            refused = "its pod is gone"
        except Unreadable as error:
            refused = str(error)
    try:
        return task, _archived(view.client, view.run_id, task.node["id"])
    except WhenceError as error:
        where = _archive_place(view.workflow, task.node) or view.client.link(f"runs/details/{view.run_id}")
        raise PipelineError(
            f"task {task.name}: its log cannot be read: {refused}; nor from the archive: {error}", hint=f"see {where}"
        ) from error


def _choose(tasks: list[Task], name: str | None, run_id: str) -> Task:
    if name is not None:
        found = [task for task in tasks if task.name == name]
        if not found:
            known = ", ".join(task.name for task in tasks if task.node is not None) or "none yet"
            raise PipelineError(f"run {run_id}: has no task {name}", hint=f"tasks with a log: {known}")
        return found[0]
    candidates = failed_tasks(tasks)[:1] or [task for task in tasks if task.node is not None and not task.group]
    if not candidates:
        raise PipelineError(f"run {run_id}: no task of it has begun")
    return candidates[-1]


def _archived(client: Client, run_id: str, node_id: str) -> str:
    """The log artifact of a node. The API has this path, kfp's client no method for it."""
    answer = client.ask(
        f"log of run {run_id}",
        client.api_client.call_api,
        ARTIFACT,
        "GET",
        path_params={"run_id": run_id, "node_id": node_id, "artifact_name": ARCHIVED_LOG},
        header_params={"Accept": "application/json"},
        response_type="object",
        auth_settings=["Bearer"],
        _return_http_data_only=True,
        _request_timeout=TIMEOUT,
    )
    return base64.b64decode(answer["data"]).decode("utf-8", "replace")


def _archive_place(workflow: Node | None, node: Node) -> str:
    """Where in the object store the log is, as far as the Workflow says."""
    artifacts = node.get("outputs", {}).get("artifacts", [])
    key = next((artifact.get("s3", {}).get("key") for artifact in artifacts if artifact["name"] == ARCHIVED_LOG), None)
    if workflow is None or key is None:
        return ""
    store = workflow["status"].get("artifactRepositoryRef", {}).get("artifactRepository", {}).get("s3", {})
    return f"s3://{store.get('bucket', '')}/{key}"
