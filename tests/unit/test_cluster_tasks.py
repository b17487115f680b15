"""What Argo's nodes say of a task before it begins and between its attempts, on a Workflow as a real one had it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest

from whence.pipelines.cluster.tasks import Task, tasks_of
from whence.pipelines.cluster.workflow import nodes_of, pod_name

RECORDINGS = Path(__file__).parent.parent / "data" / "kubeflow"
QUOTA = 'pods "whence" is forbidden: exceeded quota: whence-runs, requested: limits.memory=8Gi'

Node = dict[str, Any]


def only_task(change: Callable[[dict[str, Node]], None], state: str = "RUNNING") -> Task:
    """The one task of a Workflow whose nodes, by the end of their names, are changed."""
    workflow = json.loads((RECORDINGS / "workflow-unschedulable.json").read_text())
    nodes = workflow["status"]["nodes"]
    by_name = {node["name"].partition("root(0).")[2]: node for node in nodes.values()}
    change(by_name)
    workflow["status"]["nodes"] = {node["id"]: node for node in by_name.values()}
    [task] = tasks_of(api.V2beta1Run(run_id="5b1e", state=state), workflow)
    return task


def prepared_only(**driver: str) -> Callable[[dict[str, Node]], None]:
    """Nothing of the task is there but the pod that prepares it."""

    def change(nodes: dict[str, Node]) -> None:
        for name in [name for name in nodes if name.startswith("prepare") and "driver" not in name]:
            del nodes[name]
        nodes["prepare-driver(0)"] |= driver

    return change


@pytest.mark.parametrize(("phase", "message"), [("Pending", QUOTA), ("Running", "")])
def test_a_task_that_is_being_prepared_waits(phase: str, message: str) -> None:
    task = only_task(prepared_only(phase=phase, message=message))
    assert (task.name, task.state, task.message) == ("prepare", "WAITING", message)


def test_a_task_that_could_not_be_prepared_failed_though_it_was_left_out() -> None:
    def change(nodes: dict[str, Node]) -> None:
        nodes["prepare-driver(0)"] |= {"phase": "Failed", "message": "main: Error (exit code 1)"}
        nodes["prepare"] |= {"phase": "Omitted", "type": "Skipped"}
        for name in [name for name in nodes if name.startswith("prepare(0)")]:
            del nodes[name]

    task = only_task(change, "FAILED")
    assert (task.name, task.state, task.message) == ("prepare", "FAILED", "main: Error (exit code 1)")
    assert task.node is not None
    assert task.node["displayName"] == "prepare-driver(0)"


def test_a_second_attempt_is_said_and_its_pod_is_the_task_s() -> None:
    def change(nodes: dict[str, Node]) -> None:
        first = nodes["prepare(0).executor(0)"]
        first |= {"phase": "Error", "message": "pod deleted", "finishedAt": first["startedAt"]}
        second = {"id": f"{first['id']}1", "name": first["name"].replace("(0)", "(1)"), "phase": "Running"}
        nodes["second"] = first | second | {"message": "", "startedAt": "2026-11-25T23:20:00Z"}

    task = only_task(change)
    assert (task.name, task.state, task.message) == ("prepare", "RUNNING", "attempt 2")
    assert task.node is not None
    assert task.node["phase"] == "Running"


def test_nodes_are_the_same_compressed_or_not() -> None:
    workflow = json.loads((RECORDINGS / "workflow-demo-finished.json").read_text())
    assert "nodes" not in workflow["status"]
    nodes = nodes_of(workflow)
    assert nodes_of({"status": {"nodes": {node["id"]: node for node in nodes}}}) == nodes


def test_the_name_of_a_pod_is_the_one_its_log_is_archived_under() -> None:
    workflow = json.loads((RECORDINGS / "workflow-demo-finished.json").read_text())
    archived = [node for node in nodes_of(workflow) if "outputs" in node]
    assert len(archived) > 5
    for node in archived:
        key = node["outputs"]["artifacts"][0]["s3"]["key"]
        assert key.split("/")[-2:] == [pod_name(workflow, node), "main.log"]
