"""Whether a run of a pipeline fits where Argo keeps it, found out when the pipeline is compiled or submitted.

A run is one Workflow object of at most 1 MiB, with its nodes compressed. What a task's pod is started with stands in
six of them: as output of its driver and of the driver's retry, as input of four nodes more; what its driver is given
stands in two. So nodes are written here as Kubeflow would write them, and compressed.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import uuid
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from whence.errors import PipelineError

WORKFLOW = 1024 * 1024  # bytes of a Workflow object
ARGUMENT = 128 * 1024  # bytes of an argument or a variable of a process on Linux
SHARE = 0.9  # of both, the rest is for second attempts and longer addresses
LEVEL = 4  # of gzip: compresses a little less than Argo does
MOST = 128  # tasks that are looked at: far more than fit
NODE = "n" * 500  # what a node has beside its parameters
TEMPLATE = 1500  # bytes of a task's templates beside the task itself
STORE = (  # what Kubeflow says of its store with every artifact
    '{"Provider":"s3","Params":{"accessKeyKey":"AWS_ACCESS_KEY_ID","disableSSL":"true","endpoint":"seaweedfs.whence.svc:'
    '8333","forcePathStyle":"true","fromEnv":"false","maxRetries":"5","region":"us-east-1","secretKeyKey":'
    '"AWS_SECRET_ACCESS_KEY","secretName":"whence-s3"}}'
)


class Size(NamedTuple):
    """Bytes of a run's Workflow at its end, and of the longest argument of its pods."""

    workflow: int
    argument: int

    @property
    def fits(self) -> bool:
        return self.workflow <= SHARE * WORKFLOW and self.argument <= SHARE * ARGUMENT


def check_size(pipeline: Sequence[Mapping[str, Any]], parallel_tasks: int) -> None:
    """Refuse a run that would break off when Argo cannot keep it any more.

    Args:
        pipeline: the documents of a compiled pipeline.

    Raises:
        PipelineError: it does not fit; says how many parallel tasks would.
    """
    tasks = min(parallel_tasks, MOST)
    size = size_of(pipeline, tasks)
    if size.fits:
        return
    fitting = bisect_left(range(1, tasks), True, key=lambda fewer: not size_of(pipeline, fewer).fits)
    raise PipelineError(
        f"general.parallel_tasks: {parallel_tasks} are too many for Argo: {tasks} make a Workflow of about "
        f"{size.workflow >> 10} KiB (of {WORKFLOW >> 10}) with arguments of {size.argument >> 10} KiB (of "
        f"{ARGUMENT >> 10})",
        hint=f"{fitting} fit",
    )


def size_of(pipeline: Sequence[Mapping[str, Any]], parallel_tasks: int) -> Size:
    """The size of a run of ``pipeline``, where ``parallel_tasks`` share the work, that nothing fails in."""
    spec, *platform = pipeline
    executors = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
    graph = Graph(spec, executors, parallel_tasks, random.Random(0))
    drivers, pods = zip(*graph.tasks(spec["root"]), strict=True)
    nodes = [NODE + text for given, pod in zip(drivers, pods, strict=True) for text in [*2 * [given + pod], *4 * [pod]]]
    graph.chance.shuffle(nodes)  # Argo keeps them by ids that are random
    compressed = base64.b64encode(gzip.compress("".join(nodes).encode(), LEVEL))
    dags = [spec["root"], *(one for one in spec["components"].values() if "dag" in one)]
    templates = sum(len(_json(_json(dag))) + TEMPLATE * len(dag["dag"]["tasks"]) for dag in dags)
    return Size(len(_json(_json([spec, executors]))) + templates + len(compressed), max(map(len, [*drivers, *pods])))


@dataclass(frozen=True)
class Graph:
    """The tasks of a compiled pipeline as they come to stand in a Workflow."""

    spec: Mapping[str, Any]
    executors: Mapping[str, Any]
    parallel_tasks: int
    chance: random.Random

    def tasks(self, dag: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What the driver of every task is given, from ``dag`` on, and what it starts the task's pod with, if any."""
        yield _json([_json(dag)]), ""
        for task in dag["dag"]["tasks"].values():
            component = self.spec["components"][task["componentRef"]["name"]]
            for _ in range(self.parallel_tasks if "parameterIterator" in task else 1):
                if "dag" in component:
                    yield from self.tasks(component)
                    continue
                label = component["executorLabel"]
                container = self.spec["deploymentSpec"]["executors"][label]["container"]
                given = [_json(one) for one in (component, container, self.executors.get(label, {}))]
                yield _json([*given, _json(task)]), _json(_json([self._executor_input(task, component), *given]))

    def _executor_input(self, task: Mapping[str, Any], component: Mapping[str, Any]) -> str:
        inputs, definitions = task.get("inputs", {}), component.get("inputDefinitions", {}).get("artifacts", {})
        lists = {name for name, one in definitions.items() if one.get("isArtifactList")}
        given = {
            name: [self._artifact(name) for _ in range(self.parallel_tasks if name in lists else 1)]
            for name in inputs.get("artifacts", ())
        }
        outputs = [self._artifact(name) for name in component.get("outputDefinitions", {}).get("artifacts", ())]
        return _json([given, inputs.get("parameters"), outputs])

    def _artifact(self, name: str) -> dict[str, Any]:
        task = uuid.UUID(int=self.chance.getrandbits(128))
        address = f"s3://whence-pipelines/v2/whence-attribution/{uuid.UUID(int=0)}/{name}/{task}/{name}"
        return {"name": name, "uri": address, "metadata": {"display_name": name, "store_session_info": STORE}}


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
