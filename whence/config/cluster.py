"""The settings of a cluster: nodes, resources, credentials and the work volume of each stage's tasks."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from whence.config.base import Section
from whence.errors import SECRET_NAME

Cores = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$")]
Memory = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[KMGTPE]i?$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
Tolerations = list[dict[Literal["key", "operator", "value", "effect", "tolerationSeconds"], str | int]]


LABEL = {"app.kubernetes.io/part-of": "whence"}  # by which network policies tell our pods from other teams'
HUB_CACHE = "/cache/huggingface"  # HF_HOME of the images
AUTHORITIES_FOLDER = "/etc/whence"
AUTHORITIES_VARIABLES = ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE")  # MLflow's, S3's, the hub's


class StageResources(Section):
    """What one task of a stage asks of its node; quantities as Kubernetes writes them."""

    cpu: Cores = Field("2", description="Cores that a node must have free (request).")
    cpu_limit: Cores | None = Field(
        None, description="Cores that a task may use, and the number of its threads; null: as many as cpu."
    )
    memory: Memory = Field("8Gi", description="Memory that a node must have free (request).")
    memory_limit: Memory | None = Field(
        None, description="Memory beyond which a task is killed; null: as much as memory, which no neighbour can take."
    )
    shm: Memory = Field("1Gi", description="Size of /dev/shm, which counts towards memory.")
    timeout_hours: float = Field(2, gt=0, description="A task that runs longer is stopped.")
    retries: int = Field(2, ge=0, description="New attempts after a failure, with growing pauses.")

    @model_validator(mode="after")
    def _limits_allow_the_requests(self) -> StageResources:
        for name, limit in {"cpu": self.cpu_limit, "memory": self.memory_limit}.items():
            request = getattr(self, name)
            if limit is not None and amount(limit) < amount(request):
                raise ValueError(
                    f"{name}_limit {limit} is below {name} {request}, which Kubernetes refuses; raise the limit"
                )
        return self


def amount(quantity: str) -> float:
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)(m|[KMGTPE]i?)?", quantity).groups(default="")  # type: ignore[union-attr]
    if unit == "m":
        return float(number) / 1000
    return float(number) * (1024.0 if unit.endswith("i") else 1000.0) ** " KMGTPE".index(unit[:1] or " ")


WAITING = StageResources(cpu="500m", memory="2Gi")
GPU_STAGE = StageResources(cpu="8", memory="96Gi", shm="16Gi", timeout_hours=24)


class Cluster(Section):
    """Where the tasks of a compiled pipeline run; a run on this machine takes nothing from here."""

    platform: Literal["nvidia", "gke", "eks", "aks"] = Field(
        "nvidia", description="Whose labels name the GPU nodes: NVIDIA's GPU operator, or a cloud's own."
    )
    gpu_node_selector: dict[str, str] | None = Field(
        None, description="Labels of the nodes for GPU stages; null: the platform's labels of A100 nodes of 80 GB."
    )
    gpu_tolerations: Tolerations | None = Field(
        None, description="Taints that GPU stages tolerate, as Kubernetes writes them; null: the platform's."
    )
    cpu_node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels of the nodes for the stages without an accelerator."
    )
    cpu_tolerations: Tolerations = Field(
        default_factory=list, description="Taints that the stages without an accelerator tolerate."
    )
    architecture: Literal["amd64", "arm64"] | None = Field(
        "amd64", description="Processors that the images are built for (kubernetes.io/arch); null: those of any node."
    )
    user: int | None = Field(
        1000, gt=0, description="User id of every task; null: the platform chooses one, as OpenShift does."
    )
    image_pull_secrets: list[ObjectName] = Field(
        default_factory=list, description="Secrets with which the images are pulled, in the namespace of the runs."
    )
    accelerator: str = Field("nvidia.com/gpu", min_length=1, description="Resource name of the accelerator.")
    accelerator_count: int = Field(1, ge=0, description="Accelerators per GPU task; 0 runs all stages on CPUs.")
    nodes: int = Field(
        1,
        ge=1,
        description="Nodes that training is divided among, each with accelerator_count accelerators, as a TrainJob of "
        "Kubeflow Trainer v2; 1: one task as for the other stages.",
    )
    queue: ObjectName | None = Field(
        None, description="Kueue's LocalQueue for the TrainJob of several nodes; null: none."
    )
    secrets: dict[str, list[str]] = Field(
        default_factory=dict, description="Keys that every task gets as variables, by the name of their Secret."
    )
    config_maps: dict[str, list[str]] = Field(
        default_factory=dict, description="Keys that every task gets as variables, by the name of their ConfigMap."
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of every task, such as HTTPS_PROXY, NO_PROXY or HF_ENDPOINT."
    )
    authorities: ObjectName | None = Field(
        None,
        description="ConfigMap whose ca.crt has all certificate authorities that tasks trust, for MLflow, S3 and the "
        "hub; null: the image's.",
    )
    cache_claim: ObjectName | None = Field(
        None,
        description="PersistentVolumeClaim (ReadWriteMany) for what is downloaded from the hub, shared by all tasks; "
        "null: each downloads for itself.",
    )
    work_claim: ObjectName | None = Field(
        None,
        description="PersistentVolumeClaim (ReadWriteMany) mounted by every task at general.work_dir: a retried task "
        "goes on from its checkpoints, and a later run reuses what has not changed; null: none.",
    )
    notify: str | None = Field(
        None,
        description="Variable, a key of cluster.secrets, with the address of a webhook that is told how runs ended; "
        "null: nobody is told. It puts the graph one layer down in Kubeflow's UI.",
    )
    cpu_stages: StageResources = Field(
        default_factory=StageResources,
        description="Resources of the stages without an accelerator, but of those that stages names.",
    )
    stages: dict[str, StageResources] = Field(
        default_factory=dict, description="Resources by stage; stages not named take the defaults of their kind."
    )

    @field_validator("environment")
    @classmethod
    def _no_secret_in_the_open(cls, values: dict[str, str]) -> dict[str, str]:
        for name in values:
            if re.search(SECRET_NAME, name):
                raise ValueError(f"{name} would be in the pipeline for all to read; use a Secret: cluster.secrets")
        return values

    @model_validator(mode="after")
    def _webhook_is_secret(self) -> Cluster:
        if self.notify is not None and self.notify not in {key for keys in self.secrets.values() for key in keys}:
            raise ValueError(
                f"notify: {self.notify!r} is no key of cluster.secrets, where the webhook's address has to be"
            )
        return self

    @model_validator(mode="after")
    def _queue_is_for_several_nodes(self) -> Cluster:
        if self.queue is not None and self.nodes == 1:
            raise ValueError(f"queue: {self.queue!r} is for a TrainJob, and nodes is 1; set nodes, or queue to null")
        return self

    def resources(self, stage: str, gpu: bool) -> StageResources:
        """What a task of ``stage`` asks for; ``gpu`` says whether it is a stage that runs on an accelerator."""
        default = GPU_STAGE if gpu and self.accelerator_count else self.cpu_stages
        return self.stages.get(stage, default)
