"""The tasks of a run with their true states, from its Argo Workflow or, without that, from Kubeflow's API."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kfp_server_api as api

from whence.pipelines.cluster.runs import ENDED, state_of
from whence.pipelines.cluster.workflow import nodes_of

DRIVER = "-driver"  # the pod that prepares a task
EXECUTOR = re.compile(r"executor\(\d+\)")  # the pods that do a task's work, one per attempt
SCAFFOLD = re.compile(r"root|executor|iteration(-.*)?")  # nodes that no pipeline names
GROUP = re.compile(r"(condition|condition-branches|for-loop|exit-handler)-\d+")
ATTEMPT = re.compile(r"\(\d+\)")  # what Argo puts behind the name of a node for each attempt
ITERATION = re.compile(r"\((\d+):")  # and for each iteration of a loop
PHASES = {
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
    "Error": "FAILED",
    "Skipped": "SKIPPED",
    "Omitted": "SKIPPED",
    "Running": "RUNNING",
    "Pending": "WAITING",
}
TOGETHER = timedelta(seconds=2)  # a task and its first pod begin within

Node = dict[str, Any]


@dataclass
class Task:
    """One task of a run.

    Attributes:
        name: in the pipeline, with a number where a loop makes several of it.
        state: WAITING, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELED, or UNKNOWN where Kubeflow stopped reporting.
        group: whether it is a loop, condition or nested pipeline, which fails when a task in it does.
        message: why it waits or failed, where that is known.
        node: the Argo node whose log is the task's, at least with its ``id``; None before there is one.
    """

    name: str
    state: str
    started: datetime | None
    ended: datetime | None
    group: bool = False
    message: str = ""
    node: Node | None = None

    def seconds(self) -> float | None:
        """How long it took, or has taken so far."""
        if self.started is None or self.state == "UNKNOWN":
            return None
        end = self.ended if self.state in ENDED and self.ended is not None else datetime.now(UTC)
        return max((end - self.started).total_seconds(), 0.0)


def tasks_of(run: api.V2beta1Run, workflow: Node | None) -> list[Task]:
    """The tasks of ``run`` in the order they began; the nodes and pods around them are left out.

    Args:
        workflow: its Workflow object, where that can be read: Kubeflow's API knows less, and of large runs nothing new.
    """
    tasks = _from_api(run) if workflow is None else _from_workflow(workflow)
    state = state_of(run)
    for task in tasks:
        if task.state == "FAILED" and state == "CANCELED":
            task.state, task.message = "CANCELED", ""
        elif task.state in ("RUNNING", "WAITING") and state in ENDED:
            task.state, task.message = "UNKNOWN", "its end was not reported"
    return sorted(tasks, key=lambda task: task.started or datetime.max.replace(tzinfo=UTC))


def failed_tasks(tasks: list[Task]) -> list[Task]:
    """Those that failed, without the groups that failed for them."""
    failed = [task for task in tasks if task.state == "FAILED"]
    return [task for task in failed if not task.group] or failed


def _from_workflow(workflow: Node) -> list[Task]:
    paths: dict[str, list[Node]] = defaultdict(list)  # all attempts of a node, by its name without their numbers
    for node in nodes_of(workflow):
        paths[ATTEMPT.sub("", node["name"])].append(node)
    names = dict.fromkeys(path.removesuffix(DRIVER) for path in paths if path != workflow["metadata"]["name"])
    return [
        _task_at(path, paths.get(path, []), _pods(paths.get(path + ".executor")), _pods(paths.get(path + DRIVER)))
        for path in names
        if not SCAFFOLD.fullmatch(path.rpartition(".")[2])
    ]


def _pods(nodes: list[Node] | None) -> list[Node]:
    """The pods among ``nodes``, the last attempt at the end."""
    return sorted((node for node in nodes or () if node["type"] == "Pod"), key=lambda node: node.get("startedAt") or "")


def _task_at(path: str, nodes: list[Node], pods: list[Node], drivers: list[Node]) -> Task:
    """The task of a path: its own nodes if it has begun, the pods of its attempts, those that prepared it."""
    outer = min(nodes, key=lambda node: len(node["name"]), default=None)  # the one around the attempts
    iterations = ITERATION.findall(path)
    name = path.rpartition(".")[2] + (f" {'.'.join(str(int(i) + 1) for i in iterations)}" if iterations else "")
    state = PHASES.get(outer["phase"], "WAITING") if outer is not None else "WAITING"
    group = outer is not None and str(outer.get("templateName")).startswith("comp-")
    pod = pods[-1] if pods else None
    if drivers and state in ("WAITING", "SKIPPED") and not pods and drivers[-1]["phase"] != "Succeeded":
        pod = drivers[-1]
        state = "FAILED" if pod["phase"] in ("Failed", "Error") else "WAITING"
    elif state == "RUNNING" and not group:
        state = "WAITING" if pod is None or pod["phase"] == "Pending" else "RUNNING"
    begun = outer or pod or {}
    message = (pod or begun).get("message") or "" if state in ("WAITING", "FAILED") else ""
    if state == "RUNNING" and len(pods) > 1:
        message = f"attempt {len(pods)}"
    return Task(
        name,
        state,
        _moment(begun.get("startedAt")),
        _moment(begun.get("finishedAt")),
        group,
        " ".join(message.split()),
        pod,
    )


def _from_api(run: api.V2beta1Run) -> list[Task]:
    """What Kubeflow's API says: no messages, RUNNING for a task whose pod waits, no state for one that is left out."""
    details = (run.run_details.task_details if run.run_details is not None else None) or []
    details = sorted((detail for detail in details if detail.display_name), key=lambda detail: str(detail.start_time))
    pods = [detail for detail in details if EXECUTOR.fullmatch(detail.display_name)]
    children = {detail.display_name: [child.pod_name for child in detail.child_tasks or ()] for detail in details}
    workflows = {node.rpartition("-")[0] for nodes in children.values() for node in nodes}
    unprepared = {detail.display_name.removesuffix(DRIVER) for detail in details if _is_failed_driver(detail)}
    numbers: Counter[str] = Counter()
    tasks = []
    for detail in details:
        name = detail.display_name
        left_out = name in unprepared and not detail.state
        if _is_failed_driver(detail):
            name = name.removesuffix(DRIVER)
        elif name.endswith(DRIVER) or left_out or ATTEMPT.search(name) or SCAFFOLD.fullmatch(name) or name in workflows:
            continue
        state = detail.state or "SKIPPED"
        if state == "PENDING" or (state == "RUNNING" and _pod_waits(detail, pods)):
            state = "WAITING"
        numbers[name] += 1
        number = f" {numbers[name]}" if numbers[name] > 1 else ""
        node = next(iter(children.get(f"{name}(0)") or ()), None)
        tasks.append(
            Task(
                name + number,
                state,
                _moment(detail.start_time),
                _moment(detail.end_time),
                group=bool(GROUP.fullmatch(name)),
                node={"id": node} if node else None,
            )
        )
    return tasks


def _is_failed_driver(detail: api.V2beta1PipelineTaskDetail) -> bool:
    return detail.display_name.endswith(DRIVER) and detail.state == "FAILED"


def _pod_waits(task: api.V2beta1PipelineTaskDetail, pods: list[api.V2beta1PipelineTaskDetail]) -> bool:
    """Whether the pods that began with a task all wait; which pod is whose is not in the answer."""
    began = [pod for pod in pods if abs(pod.start_time - task.start_time) <= TOGETHER]
    return bool(began) and all(pod.state == "PENDING" for pod in began)


def _moment(value: datetime | str | None) -> datetime | None:
    """A time of either API; the beginning of 1970, and anything before, means that it has not come yet."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment is None:
        return None
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    return moment if moment > datetime(1970, 1, 2, tzinfo=UTC) else None
