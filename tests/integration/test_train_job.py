"""Two nodes, here two processes with the variables that Kubeflow Trainer sets, train what one process trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Bucket
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from ranks_helpers import make_inputs, tuning
from safetensors.torch import load_file

from whence import train_job
from whence.errors import ClusterError

POD = {
    "spec": {
        "containers": [
            {"name": "main", "image": "whence/train:1", "resources": {"limits": {"cpu": "1", "memory": "2Gi"}}}
        ]
    }
}


class LocalNodes:
    """Kubeflow's client, whose nodes are processes here."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.nodes, self.deleted = logs, list[subprocess.Popen[bytes]](), list[str]()
        self.backend = object.__new__(KubernetesBackend)
        self.backend.namespace = "runs"
        self.backend.core_api = SimpleNamespace(
            read_namespaced_pod=lambda name, namespace: POD,
            api_client=SimpleNamespace(sanitize_for_serialization=lambda pod: pod),
        )

    def list_jobs(self) -> list[Any]:
        return []

    def train(self, runtime: str, trainer: Any, options: list[Any]) -> None:
        job: dict[str, Any] = {}
        for option in options:
            option(job, trainer, self.backend)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, *job["spec"]["trainer"]["command"][1:]]
        for number in range(trainer.num_nodes):
            trainers = {
                "NNODES": trainer.num_nodes,
                "NODE_RANK": number,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environment = os.environ | {f"PET_{name}": str(value) for name, value in trainers.items()}
            with open(self.logs / f"node-{number}", "wb") as log:
                self.nodes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def wait_for_job_status(self, name: str, status: set[str], **_: Any) -> Any:
        if "Running" in status:
            return None
        codes = [node.wait() for node in self.nodes]
        steps = [SimpleNamespace(name=f"node-{number}") for number in range(len(self.nodes))]
        return SimpleNamespace(status="Failed" if any(codes) else "Complete", steps=steps)

    def get_job_logs(self, name: str, step: str = "node-0", follow: bool = False) -> Iterator[str]:
        self.nodes[int(step[-1])].wait()
        yield from (self.logs / step).read_text().splitlines()

    def delete_job(self, name: str) -> None:
        self.deleted.append(name)
        for node in self.nodes:
            node.terminate()
            node.wait()


@pytest.fixture
def nodes(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> LocalNodes:
    make_inputs(tmp_path)
    client = LocalNodes(tmp_path)
    monkeypatch.setattr(train_job, "_client", lambda: client)
    monkeypatch.setattr(train_job, "_address", lambda folder: f"s3://{bucket.name}/run/base_model")
    monkeypatch.setenv("KFP_POD_NAME", "train-pod")
    return client


def test_two_nodes_train_the_weights_of_one_process_and_the_model_comes_back(nodes: LocalNodes, tmp_path: Path) -> None:
    logged: list[int] = []
    two = tuning(tmp_path, tmp_path / "two", general__processes=1, cluster__nodes=2)
    result = train_job.train_on_nodes(two, lambda step, metrics: logged.append(step), {})
    one = tuning(tmp_path, tmp_path / "one", general__processes=1, training__per_device_train_batch_size=4)
    expected = one.run(lambda step, metrics: None)
    assert result.metrics["steps"] == expected.metrics["steps"]
    assert logged == [entry["step"] for entry in result.history]
    weights, reference = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "two", tmp_path / "one")
    )
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-2, atol=2e-4)
    assert len(nodes.deleted) == 1


def test_what_a_node_refuses_is_the_error_of_the_task(nodes: LocalNodes, tmp_path: Path) -> None:
    many = tuning(
        tmp_path, tmp_path / "two", general__processes=1, cluster__nodes=2, training__per_device_train_batch_size=8
    )
    with pytest.raises(
        ClusterError, match=r"the TrainJob whence-\S+ failed: 14 training examples do not fill one batch"
    ):
        train_job.train_on_nodes(many, lambda step, metrics: None, {})
    assert len(nodes.deleted) == 1
