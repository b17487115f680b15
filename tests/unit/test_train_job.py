"""The TrainJob that several nodes train as: Kubeflow's own client makes it, by the schema that it publishes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubeflow.trainer import TrainerClient
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubeflow_trainer_api import models
from kubernetes.client import ApiException
from ranks_helpers import settings

from whence import train_job
from whence.errors import ClusterError, ConfigError
from whence.ranks import FineTuning
from whence.stages.train import accelerators_of_nodes

RUNTIME = {  # the part of Kubeflow Trainer's manifest that its client reads
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch"}]}}},
                        },
                    }
                ]
            }
        },
    },
}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
POD = {
    "spec": {
        "serviceAccountName": "whence-runner",
        "nodeSelector": {"nvidia.com/gpu.product": "H100"},
        "tolerations": [TOLERATION],
        "containers": [
            {"name": "wait", "image": "argo"},
            {
                "name": "main",
                "image": "registry/train:1",
                "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "8", "memory": "96Gi"}},
            },
        ],
    }
}


class Api:
    """The cluster's answers to Kubeflow's client."""

    def __init__(self, refusal: ApiException | None = None) -> None:
        self.made: list[dict[str, Any]] = []
        self.refusal = refusal

    def get_namespaced_custom_object(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(get=self._not_found)

    def get_cluster_custom_object(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(get=lambda timeout: RUNTIME)

    def create_namespaced_custom_object(self, *arguments: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.made.append(arguments[-1])

    def _not_found(self, timeout: float) -> None:
        raise ApiException(status=404)


def make(api: Api, **overrides: Any) -> None:
    client = object.__new__(TrainerClient)
    client.backend = object.__new__(KubernetesBackend)
    client.backend.custom_api, client.backend.namespace = api, "runs"
    config = settings(cluster__nodes=3, **overrides)
    place = Path("/work/scratch")
    tuning = FineTuning(place, place, place, config, place, place)
    train_job.create(client, "whence-1", tuning, train_job.Pod.of(POD, {"nvidia.com/gpu": "4"}), "s3://bucket/run")


def test_a_train_job_has_image_place_resources_and_credentials_of_the_task_that_makes_it() -> None:
    api = Api()
    make(
        api,
        cluster__secrets={"whence-s3": ["AWS_ACCESS_KEY_ID"]},
        cluster__environment={"HTTPS_PROXY": "http://proxy"},
        cluster__authorities="company-ca",
        cluster__work_claim="work",
        general__work_dir="/work/kept",
        cluster__queue="team-a",
    )
    [made] = api.made
    assert models.TrainerV1alpha1TrainJob.from_dict(made).to_dict() == made
    assert made["metadata"]["name"] == "whence-1"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    spec, trainer = made["spec"], made["spec"]["trainer"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    assert spec["activeDeadlineSeconds"] == 24 * 3600
    assert (trainer["image"], trainer["numNodes"]) == ("registry/train:1", 3)
    assert trainer["command"] == ["python", "-m", "whence.train_job", "s3://bucket/run", "/work/scratch"]
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "8", "memory": "96Gi", "nvidia.com/gpu": "4"}
    [patch] = spec["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["metadata"]["labels"] == {"app.kubernetes.io/part-of": "whence"}
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "whence-runner"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert pod["tolerations"] == [TOLERATION]
    assert pod["securityContext"] == {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}
    [container] = pod["containers"]
    variables = {one["name"]: one for one in container["env"]}
    assert variables["HTTPS_PROXY"]["value"] == "http://proxy"
    assert variables["AWS_CA_BUNDLE"]["value"] == "/etc/whence/ca.crt"
    key = {"name": "whence-s3", "key": "AWS_ACCESS_KEY_ID"}
    assert variables["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"] == key
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shm": "/dev/shm", "work": "/work/kept", "authorities": "/etc/whence",
    }  # fmt: skip
    assert {volume["name"] for volume in pod["volumes"]} == {"shm", "work", "authorities"}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"accelerator": "", "accelerator_count": ""}, {"nvidia.com/gpu": "4"}),
        ({"accelerator": "amd.com/gpu", "accelerator_count": "8"}, {"amd.com/gpu": "8"}),
        ({"accelerator": "", "accelerator_count": "0"}, {}),
    ],
)
def test_nodes_have_the_accelerators_that_the_form_says(told: dict[str, str], expected: dict[str, str]) -> None:
    work: Any = SimpleNamespace(parameters=told, config=settings(cluster__accelerator_count=4))
    assert accelerators_of_nodes(work) == expected


def test_a_cluster_without_trainer_or_rights_is_named_with_the_way_out() -> None:
    refusal = ApiException(status=403, reason="Forbidden")
    with pytest.raises(ClusterError, match=r"was not made: .*Forbidden; Kubeflow Trainer v2 must be there"):
        make(Api(refusal))


def test_a_job_is_deleted_when_its_task_is_told_to_stop() -> None:
    deleted: list[str] = []
    client: Any = SimpleNamespace(delete_job=deleted.append)
    with pytest.raises(SystemExit), train_job._deleted(client, "whence-1"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert deleted == ["whence-1"]


def test_a_job_that_was_never_made_is_not_said_to_be_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError from ApiException(status=404 if name == "whence-1" else 500)

    client: Any = SimpleNamespace(delete_job=refuse)
    for name in ("whence-1", "whence-2"):
        with pytest.raises(ClusterError, match="not made"), train_job._deleted(client, name):
            raise ClusterError("not made")
    assert "whence-1" not in caplog.text
    assert "kubectl delete trainjob whence-2" in caplog.text


def test_artifacts_are_looked_for_where_kubeflow_keeps_them() -> None:
    assert train_job._address(Path("/s3/bucket/run/model")) == "s3://bucket/run/model"
    assert train_job._address(Path("/minio/bucket/run/model")) == "s3://bucket/run/model"
    with pytest.raises(ClusterError, match="several nodes meet in S3"):
        train_job._address(Path("/gcs/bucket/run/model"))


def test_a_queue_without_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="queue: 'team-a' is for a TrainJob"):
        settings(cluster__queue="team-a")
