"""Fine-tuning on several nodes of a cluster: a TrainJob of Kubeflow Trainer v2, its nodes like the pod that makes it.

The pod puts the inputs into storage and follows the job (:func:`train_on_nodes`). Every node fetches them and runs its
ranks, and the first one puts the model there (:func:`node`): ``python -m whence.train_job s3://...``, with the
variables that Trainer sets for torchrun (``PET_NNODES``, ``PET_NODE_RANK``, ``PET_MASTER_ADDR``, ...).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.config import Config
from whence.config.cluster import AUTHORITIES_FOLDER, AUTHORITIES_VARIABLES, HUB_CACHE, LABEL
from whence.config_file import parse_config
from whence.environment import strip_secrets
from whence.errors import ClusterError, WhenceError, message_of, trace_of
from whence.storage import download_folder, upload_folder

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

    from whence.ranks import FineTuning
    from whence.training import OnLog, TrainingResult

logger = logging.getLogger(__name__)

POD_VARIABLE, RUN_VARIABLE = "KFP_POD_NAME", "KFP_RUN_ID"  # set by Kubeflow, and by us
LOGGED, FAILED = "logged ", "Error: "  # how lines of a node begin
RUNTIME = "torch-distributed"  # Kubeflow Trainer's own
CONTAINER, JOB = "node", "node"  # in that runtime
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONFIG, RESULT = "config.yaml", "model"
INPUTS = ("base_model", "train_data", "eval_data")
MISSING = "Kubeflow's SDK is not installed here; it is in the image of train (elsewhere: pip install 'whence[trainer]')"


def wanted(config: Config) -> bool:
    """Whether the settings ask for several nodes, and this is a task on a cluster, which can have them."""
    return config.cluster.nodes > 1 and POD_VARIABLE in os.environ


@dataclass(frozen=True)
class Pod:
    """What the nodes of a job take over from the pod that makes it.

    Attributes:
        limits: of cores, memory and accelerators: what each node is to have.
    """

    image: str
    service_account: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    limits: dict[str, str]

    @classmethod
    def of(cls, pod: dict[str, Any], accelerators: Mapping[str, str]) -> Pod:
        """From a pod as Kubernetes answers it; it waits without ``accelerators``, which each node is to have."""
        spec = pod["spec"]
        main = next(one for one in spec["containers"] if one["name"] == "main")
        limits = {name: main["resources"]["limits"][name] for name in ("cpu", "memory")} | dict(accelerators)
        account = spec.get("serviceAccountName", "default")
        return cls(main["image"], account, spec.get("nodeSelector", {}), spec.get("tolerations", []), limits)


def train_on_nodes(tuning: FineTuning, on_log: OnLog, accelerators: Mapping[str, str]) -> TrainingResult:
    """Train as ``tuning`` says on ``cluster.nodes`` nodes; the job ends with this process, however that ends.

    Args:
        accelerators: how many each node is to have, by resource name.

    Raises:
        ClusterError: the job cannot be made, or a node failed; the message is the node's.
        StorageError: inputs or model cannot be stored or fetched.
    """
    from whence.training import TrainingResult

    client = _client()
    prefix = f"whence-{os.environ.get(RUN_VARIABLE, uuid.uuid4().hex)[:13]}"
    for job in client.list_jobs():
        if job.name.startswith(prefix):  # of an attempt before this one
            client.delete_job(job.name)
    name = f"{prefix}-{uuid.uuid4().hex[:5]}"
    address = f"{_address(tuning.base_model)}-{name}"
    for part in INPUTS:
        upload_folder(getattr(tuning, part), f"{address}/{part}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(tuning.config.to_yaml(), encoding="utf-8")
        upload_folder(folder, f"{address}/settings")
    pod = client.backend.core_api.read_namespaced_pod(os.environ[POD_VARIABLE], client.backend.namespace)
    own = Pod.of(client.backend.core_api.api_client.sanitize_for_serialization(pod), accelerators)
    with _deleted(client, name):
        create(client, name, tuning, own, address)
        _follow(client, name, on_log)
    download_folder(f"{address}/{RESULT}", tuning.output)
    record = json.loads((tuning.output / "training.json").read_text(encoding="utf-8"))
    return TrainingResult(record["metrics"], record["history"], record["resumed_from"])


def create(client: TrainerClient, name: str, tuning: FineTuning, pod: Pod, address: str) -> None:
    """Create the TrainJob: image, account and place of ``pod``, credentials and volumes as the settings have them."""
    from kubeflow.trainer import CustomTrainerContainer
    from kubeflow.trainer.options import kubernetes as option
    from kubeflow.trainer.options.common import Name

    cluster = tuning.config.cluster
    volumes, mounts, variables = _volumes(tuning.config)
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in variables.items()]
    for kind, sources in {"secretKeyRef": cluster.secrets, "configMapKeyRef": cluster.config_maps}.items():
        env += [
            {"name": key, "valueFrom": {kind: {"name": source, "key": key}}}
            for source, keys in sources.items()
            for key in keys
        ]
    user = {} if cluster.user is None else {"runAsUser": cluster.user, "runAsGroup": cluster.user}
    spec = option.PodSpecPatch(
        service_account_name=pod.service_account,
        volumes=volumes,
        containers=[option.ContainerPatch(CONTAINER, env=env, volume_mounts=mounts)],
        image_pull_secrets=[{"name": secret} for secret in cluster.image_pull_secrets] or None,
        security_context=user | {"runAsNonRoot": True},
        node_selector=pod.node_selector or None,
        tolerations=pod.tolerations or None,
    )
    template = option.PodTemplatePatch(metadata={"labels": LABEL}, spec=spec)
    job = option.ReplicatedJobPatch(JOB, option.JobTemplatePatch(spec=option.JobSpecPatch(template)))
    jobs = option.JobSetTemplatePatch(spec=option.JobSetSpecPatch([job]))
    patch = option.RuntimePatch(option.TrainingRuntimeSpecPatch(jobs))
    trainer = CustomTrainerContainer(image=pod.image, num_nodes=cluster.nodes, resources_per_node=pod.limits)
    command = ["python", "-m", "whence.train_job", address, str(tuning.checkpoints)]
    seconds = round(cluster.resources("train", gpu=True).timeout_hours * 3600)
    labels = LABEL | ({QUEUE_LABEL: cluster.queue} if cluster.queue else {})
    options = [
        Name(name),
        option.Labels(labels),
        option.TrainerCommand(command),
        option.ActiveDeadlineSeconds(seconds),
        patch,
    ]
    try:
        client.train(runtime=RUNTIME, trainer=trainer, options=options)
    except (RuntimeError, TimeoutError, ValueError) as error:
        why = error.__cause__ or error
        raise ClusterError(
            f"the TrainJob {name} for {cluster.nodes} nodes was not made: {error}: {_reason(why)}",
            hint="Kubeflow Trainer v2 must be there, and the runs' service account may make TrainJobs (k8s/README.md); "
            "or set cluster.nodes to 1",
        ) from error


def _volumes(config: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Volumes, where they are mounted, and the plain variables: those that every task on a cluster gets."""
    cluster = config.cluster
    claims = {"cache": (cluster.cache_claim, HUB_CACHE), "work": (cluster.work_claim, config.general.work_dir)}
    shm = {"medium": "Memory", "sizeLimit": cluster.resources("train", gpu=True).shm}
    found: dict[str, tuple[dict[str, Any], str]] = {"shm": ({"emptyDir": shm}, "/dev/shm")}
    for name, (claim, folder) in claims.items():
        if claim is not None and folder is not None:
            found[name] = ({"persistentVolumeClaim": {"claimName": claim}}, folder)
    variables = dict(cluster.environment)
    if cluster.authorities is not None:
        found["authorities"] = ({"configMap": {"name": cluster.authorities}}, AUTHORITIES_FOLDER)
        variables |= dict.fromkeys(AUTHORITIES_VARIABLES, f"{AUTHORITIES_FOLDER}/ca.crt")
    volumes = [{"name": name} | source for name, (source, _) in found.items()]
    return volumes, [{"name": name, "mountPath": folder} for name, (_, folder) in found.items()], variables


@contextmanager
def _deleted(client: TrainerClient, name: str) -> Iterator[None]:
    """Delete the job in the end, also where this process is told to stop, as when its run is cancelled."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        try:
            client.delete_job(name)
        except (RuntimeError, TimeoutError) as error:
            if getattr(error.__cause__, "status", None) != 404:  # it was never made
                logger.warning("TrainJob %s is left behind (%s); kubectl delete trainjob %s", name, error, name)


def _follow(client: TrainerClient, name: str, on_log: OnLog) -> None:
    """Show what the first node says until the job has ended.

    Raises:
        ClusterError: it failed; with what the node says that failed.
    """
    hours = 24 * 365
    client.wait_for_job_status(name, {"Running", "Complete", "Failed"}, timeout=hours * 3600, polling_interval=5)
    for line in client.get_job_logs(name, follow=True):
        if line.startswith(LOGGED):
            on_log(*json.loads(line.removeprefix(LOGGED)))
        else:
            print(line.rstrip(), file=sys.stderr, flush=True)
    job = client.wait_for_job_status(name, {"Complete", "Failed"}, timeout=hours * 3600, polling_interval=5)
    if job.status == "Failed":
        lines = [line for step in job.steps for line in client.get_job_logs(name, step=step.name)]
        said = dict.fromkeys(line.removeprefix(FAILED).strip() for line in lines if line.startswith(FAILED))
        raise ClusterError(f"the TrainJob {name} failed: {'; '.join(said) or 'no node said why, its pods are gone'}")


def _client() -> TrainerClient:
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise ClusterError(MISSING) from None
    return TrainerClient()


def _address(folder: Path) -> str:
    """Where Kubeflow keeps an artifact: its launcher puts ``s3://bucket/key`` at ``/s3/bucket/key``."""
    scheme, _, rest = str(folder).lstrip("/").partition("/")
    if scheme not in ("s3", "minio") or not rest:
        raise ClusterError(
            f"several nodes meet in S3, and the artifacts of this run are not there: {folder}",
            hint="keep runs in an S3 store (k8s/README.md), or set cluster.nodes to 1",
        )
    return f"s3://{rest}"


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error).strip().partition("\n")[0]


def node(address: str, checkpoints: Path, folder: Path) -> None:
    """What each node does: fetch the inputs, run its ranks, and store the model where the first of them was here.

    Args:
        checkpoints: on a volume that all nodes and later attempts share, or nobody's.
        folder: for inputs and output.
    """
    from torch.distributed.run import config_from_args, parse_args

    from whence.models.loading import count_processes
    from whence.ranks import FineTuning

    for name in (*INPUTS, "settings"):
        download_folder(f"{address}/{name}", folder / name)
    config = parse_config((folder / "settings" / CONFIG).read_text(encoding="utf-8"))
    inputs = {name: folder / name for name in INPUTS}
    tuning = FineTuning(**inputs, config=config, output=folder / RESULT, checkpoints=checkpoints)
    # What is not said comes from Trainer's variables.
    launch, *_ = config_from_args(parse_args(["--nproc-per-node", "1", __file__]))
    own: dict[str, Any] = {
        "nproc_per_node": count_processes(config.general),
        "max_restarts": 0,
        "start_method": "spawn",
    }
    results = tuning.launch(
        replace(launch, **own, virtual_local_rank=True),
        lambda step, metrics: print(f"{LOGGED}{json.dumps([step, metrics])}", flush=True),
    )
    if 0 in results:
        upload_folder(folder / RESULT, f"{address}/{RESULT}")


def main(arguments: Sequence[str]) -> None:
    """A node's process: errors end with a line that says why, which whoever made the job looks for."""
    strip_secrets()
    try:
        with tempfile.TemporaryDirectory() as folder:
            node(arguments[0], Path(arguments[1]), Path(folder))
    except Exception as error:
        if not isinstance(error, WhenceError):
            print(trace_of(error), file=sys.stderr)
        sys.exit(f"{FAILED}{message_of(error)}")


if __name__ == "__main__":
    main(sys.argv[1:])
