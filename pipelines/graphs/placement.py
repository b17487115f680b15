"""Where the tasks of a compiled pipeline run: nodes, resources, credentials, time limits, retries.

kfp's local runner ignores nodes and credentials but would retry failed stages, so a pipeline gets all this only when it
is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from whence.config import Config
from whence.config.cluster import (
    AUTHORITIES_FOLDER,
    AUTHORITIES_VARIABLES,
    GPU_STAGE,
    HUB_CACHE,
    LABEL,
    WAITING,
    Cluster,
)  # fmt: skip
from whence.stages import stage as declaration

RUN_ID_VARIABLE = "KFP_RUN_ID"
TOLERATION_KEYS = {"tolerationSeconds": "toleration_seconds"}  # kfp's name for Kubernetes' own
FIRST_PAUSE, PAUSE_FACTOR = 30, 2  # seconds before the second attempt, and how the pause grows
FORM_HELP = {
    "gpu_node_selector": "Labels of the nodes for the GPU stages [cluster.gpu_node_selector].",
    "gpu_tolerations": "Taints that the GPU stages tolerate [cluster.gpu_tolerations].",
    "gpu_accelerator": "Resource name of the GPU stages' accelerator [cluster.accelerator].",
    "gpu_count": "Accelerators per task of those GPU stages that share their work [cluster.accelerator_count].",
    "gpu_cpu": "Cores per task of a GPU stage, but of those that [cluster.stages] names.",
    "gpu_memory": "Memory per task of a GPU stage, but of those that [cluster.stages] names.",
}


@dataclass(frozen=True)
class Platform:
    """How one kind of cluster marks its GPU nodes."""

    node_selector: dict[str, str]
    """Labels of A100 nodes of 80 GB."""
    not_gpu: dict[str, Any]
    """What a node without GPU fulfils, as a match expression of node affinity."""
    tolerations: tuple[dict[str, str], ...] = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)


_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
PLATFORMS = {
    "nvidia": Platform(
        {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        {"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"},
    ),
    "gke": Platform(
        {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
        {"key": "cloud.google.com/gke-accelerator", "operator": "DoesNotExist"},
    ),
    "eks": Platform(
        {_INSTANCE_TYPE: "p4de.24xlarge"},
        {"key": _INSTANCE_TYPE, "operator": "NotIn", "values": ["p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge"]},
    ),
    "aks": Platform(
        {_INSTANCE_TYPE: "Standard_NC24ads_A100_v4"},
        {"key": "kubernetes.azure.com/accelerator", "operator": "DoesNotExist"},
        (
            {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        ),
    ),
}


@dataclass(frozen=True)
class Placement:
    """Places tasks as ``cluster`` says; ``cluster`` is None for a run on this machine."""

    cluster: Cluster | None
    gpu: bool
    """Whether the stages that run the model ask for an accelerator."""
    work_dir: str | None = None
    """Where tasks find the work volume, if there is one."""

    @classmethod
    def of(cls, config: Config) -> Placement:
        """The placement of a compiled pipeline."""
        return cls(config.cluster, gpu=config.cluster.accelerator_count > 0, work_dir=config.general.work_dir)

    def form(self) -> dict[str, Any]:
        """The fields that the pipeline's form has for it, with their defaults."""
        if self.cluster is None or not self.gpu:
            return {}
        cluster, platform = self.cluster, PLATFORMS[self.cluster.platform]
        selector, tolerations = cluster.gpu_node_selector, cluster.gpu_tolerations
        return {
            "gpu_node_selector": platform.node_selector if selector is None else selector,
            "gpu_tolerations": list(platform.tolerations) if tolerations is None else tolerations,
            # Text, the number too: Kubeflow reads nothing else where a pod's resources are put together.
            "gpu_accelerator": cluster.accelerator,
            "gpu_count": str(cluster.accelerator_count),
            "gpu_cpu": GPU_STAGE.cpu,
            "gpu_memory": GPU_STAGE.memory,
        }

    def arguments(self, stage: str, form: Mapping[str, Any]) -> dict[str, Any]:
        """What a task of ``stage`` is told of its place, as arguments of its component."""
        if self.cluster is None or not (self._on_gpu(stage) and makes_train_job(self.cluster, stage)):
            return {}
        return {"accelerator": form["gpu_accelerator"], "accelerator_count": form["gpu_count"]}

    def place(self, stage: str, task: PipelineTask, form: Mapping[str, Any]) -> None:
        """Set where a task of ``stage`` runs, and with what; ``form`` has the pipeline's fields of :meth:`form`."""
        # How stages find the record of their pipeline run; `whence run` sets it the same way locally.
        kubernetes.use_field_path_as_env(task, RUN_ID_VARIABLE, "metadata.labels['pipeline/runid']")
        if self.cluster is not None:
            self._resources(self.cluster, stage, task, form)
            self._node(self.cluster, stage, task, form)
            self._environment(self.cluster, task)
            for key, value in LABEL.items():
                kubernetes.add_pod_label(task, key, value)
            if self.cluster.image_pull_secrets:
                kubernetes.set_image_pull_secrets(task, self.cluster.image_pull_secrets)

    def _resources(self, cluster: Cluster, stage: str, task: PipelineTask, form: Mapping[str, Any]) -> None:
        resources = cluster.resources(stage, declaration(stage).gpu)
        cpu, memory = resources.cpu, resources.memory
        cpu_limit, memory_limit = resources.cpu_limit or cpu, resources.memory_limit or memory
        if self._on_gpu(stage) and stage not in cluster.stages:
            cpu, memory = cpu_limit, memory_limit = form["gpu_cpu"], form["gpu_memory"]
            register(task, cpu, memory)
        if makes_train_job(cluster, stage):  # it waits for the nodes; its limits tell it what each may use
            cpu, memory = WAITING.cpu, WAITING.memory
        task.set_cpu_request(cpu).set_cpu_limit(cpu_limit)
        task.set_memory_request(memory).set_memory_limit(memory_limit)
        timeout = round(resources.timeout_hours * 3600)
        retry(task, resources.retries, timeout)
        kubernetes.set_timeout(task, timeout)
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=resources.shm)
        kubernetes.set_security_context(task, run_as_user=cluster.user, run_as_group=cluster.user, run_as_non_root=True)

    def _node(self, cluster: Cluster, stage: str, task: PipelineTask, form: Mapping[str, Any]) -> None:
        expressions = []
        if cluster.architecture is not None:
            expressions.append({"key": "kubernetes.io/arch", "operator": "In", "values": [cluster.architecture]})
        if self._on_gpu(stage):
            if not makes_train_job(cluster, stage):
                accelerator, count = form["gpu_accelerator"], form["gpu_count"] if declaration(stage).divided else "1"
                register(task, accelerator, count)
                task.set_accelerator_type(accelerator).set_accelerator_limit(count)
            kubernetes.add_node_selector_json(task, form["gpu_node_selector"])
            kubernetes.add_toleration_json(task, form["gpu_tolerations"])
        else:
            expressions.append(PLATFORMS[cluster.platform].not_gpu)
            for label, value in cluster.cpu_node_selector.items():
                kubernetes.add_node_selector(task, label, value)
            for taint in cluster.cpu_tolerations:
                kubernetes.add_toleration(task, **{TOLERATION_KEYS.get(key, key): taint[key] for key in taint})
        if expressions:  # in one term, whose expressions must all hold; of several terms one is enough
            kubernetes.add_node_affinity(task, match_expressions=expressions)

    def _on_gpu(self, stage: str) -> bool:
        return self.gpu and declaration(stage).gpu

    def _environment(self, cluster: Cluster, task: PipelineTask) -> None:
        for name, keys in cluster.secrets.items():
            kubernetes.use_secret_as_env(task, name, {key: key for key in keys})
        for name, keys in cluster.config_maps.items():
            kubernetes.use_config_map_as_env(task, name, {key: key for key in keys})
        variables = dict(cluster.environment)
        if cluster.authorities is not None:
            kubernetes.use_config_map_as_volume(task, cluster.authorities, AUTHORITIES_FOLDER)
            variables |= dict.fromkeys(AUTHORITIES_VARIABLES, f"{AUTHORITIES_FOLDER}/ca.crt")
        for name, value in variables.items():
            task.set_env_variable(name, value)
        if cluster.cache_claim is not None:
            kubernetes.mount_pvc(task, pvc_name=cluster.cache_claim, mount_path=HUB_CACHE)
        if cluster.work_claim is not None and self.work_dir is not None:
            kubernetes.mount_pvc(task, pvc_name=cluster.work_claim, mount_path=self.work_dir)


HERE = Placement(cluster=None, gpu=False)


def makes_train_job(cluster: Cluster, stage: str) -> bool:
    """Whether a task has its work done by the nodes of a TrainJob, which :mod:`whence.train_job` makes like its pod."""
    return stage == "train" and cluster.nodes > 1


def register(task: PipelineTask, *values: Any) -> None:
    """Pass ``values`` of the form down to ``task``.

    kfp does so for what a component takes, but not for what sets its resources; Kubeflow's driver then fails with
    "parent DAG does not have input parameter".
    """
    task.register_pipeline_channels([value for value in values if isinstance(value, PipelineChannel)])


def retry(task: PipelineTask, retries: int, timeout: int) -> None:
    """Try ``task`` again up to ``retries`` times, each attempt stopped after ``timeout`` seconds.

    Argo counts the maximum from the start of the first attempt: at the end of it no attempt begins, and one that runs
    is killed. So it must have room for every attempt and every pause.
    """
    pauses = sum(FIRST_PAUSE * PAUSE_FACTOR**attempt for attempt in range(retries))
    task.set_retry(
        retries,
        backoff_duration=f"{FIRST_PAUSE}s",
        backoff_factor=float(PAUSE_FACTOR),
        backoff_max_duration=f"{timeout * (retries + 1) + pauses}s",
    )
