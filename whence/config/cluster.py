"""The settings of a cluster: nodes, resources, credentials and the work volume of each stage's tasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from whence.config.base import Section

Cores = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$")]
Memory = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[KMGTPE]i?$")]
ClaimName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]


class StageResources(Section):
    """What one task of a stage asks of its node; quantities as Kubernetes writes them."""

    cpu: Cores = Field("2", description="Cores, asked for and the limit.")
    memory: Memory = Field("8Gi", description="Memory, asked for and the limit.")
    shm: Memory = Field("1Gi", description="Size of /dev/shm, which counts towards memory.")
    timeout_hours: float = Field(2, gt=0, description="A task that runs longer is stopped.")
    retries: int = Field(2, ge=0, description="New attempts after a failure, with growing pauses.")


GPU_STAGE = StageResources(cpu="8", memory="96Gi", shm="16Gi", timeout_hours=24)


class Cluster(Section):
    """Where the tasks of a compiled pipeline run; a run on this machine takes nothing from here."""

    platform: Literal["nvidia", "gke", "eks", "aks"] = Field(
        "nvidia", description="Whose labels name the GPU nodes: NVIDIA's GPU operator, or a cloud's own."
    )
    gpu_node_selector: dict[str, str] | None = Field(
        None, description="Labels of the nodes for GPU stages; null: the platform's labels of A100 nodes of 80 GB."
    )
    gpu_tolerations: list[dict[str, str | int]] | None = Field(
        None, description="Taints that GPU stages tolerate, as Kubernetes writes them; null: the platform's."
    )
    accelerator: str = Field("nvidia.com/gpu", min_length=1, description="Resource name of the accelerator.")
    accelerator_count: int = Field(1, ge=0, description="Accelerators per GPU task; 0 runs all stages on CPUs.")
    secrets: dict[str, list[str]] = Field(
        default_factory=dict, description="Keys that every task gets as variables, by the name of their Secret."
    )
    config_maps: dict[str, list[str]] = Field(
        default_factory=dict, description="Keys that every task gets as variables, by the name of their ConfigMap."
    )
    work_claim: ClaimName | None = Field(
        None,
        description="PersistentVolumeClaim (ReadWriteMany) mounted by every task at general.work_dir: a retried task "
        "goes on from its checkpoints, and a later run reuses what has not changed; null: none.",
    )
    stages: dict[str, StageResources] = Field(
        default_factory=dict, description="Resources by stage; stages not named take the defaults of their kind."
    )

    def resources(self, stage: str, gpu: bool) -> StageResources:
        """What a task of ``stage`` asks for; ``gpu`` says whether it is a stage that runs on an accelerator."""
        default = GPU_STAGE if gpu and self.accelerator_count else StageResources()
        return self.stages.get(stage, default)
