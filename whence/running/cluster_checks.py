"""What a run needs of the place it runs in, tried in seconds: by ``whence cluster check`` in every stage's image on the
cluster, and by ``whence config check --cluster`` on this machine, where some of it cannot be seen.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from whence import __version__, s3
from whence.config import Config, is_address
from whence.config.cluster import amount
from whence.environment import settings_of_the_network
from whence.errors import ClusterError, StorageError, WhenceError
from whence.running.declaration import Stage
from whence.storage import check_writable
from whence.tracking import try_tracking

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RIGHTS = (  # what Kubeflow's launcher and Argo need of a run's service account, as k8s/base/runs has it
    {"verb": "get", "group": "", "resource": "pods"},
    {"verb": "get", "group": "", "resource": "configmaps", "name": "kfp-launcher"},
    {"verb": "create", "group": "argoproj.io", "resource": "workflowtaskresults"},
)
MARK = "whence check"  # begins the lines that are looked for in a task's log


@dataclass(frozen=True)
class Place:
    """Where is looked: ``stage`` and ``artifact``, an address in the run's store, are None outside of a cluster."""

    config: Config
    stage: Stage | None = None
    artifact: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What one check has found: what is there, or what is wrong with the way out; one line of a log."""

    check: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return "\t".join((MARK, self.check, "ok" if self.passed else "FAILED", " ".join(self.found.split())))

    @classmethod
    def read(cls, log: str) -> list[Outcome]:
        """The outcomes in what a task has printed."""
        lines = (line[line.find(MARK) :].rstrip().split("\t") for line in log.splitlines() if MARK in line)
        return [cls(line[1], line[2] == "ok", line[3]) for line in lines if len(line) == 4]


def look(place: Place) -> Iterator[Outcome]:
    """Try everything, one after the other; what does not apply or cannot be seen here is left out."""
    for name, check in CHECKS.items():
        try:
            found = check(place)
        except WhenceError as error:
            yield Outcome(name, False, str(error))
        else:
            if found:
                yield Outcome(name, True, found)


def _image(place: Place) -> str:
    """The image is that of its stage and can import it."""
    if place.stage is None:
        return ""
    held = os.environ.get("WHENCE_STAGE", place.stage.name)
    if held != place.stage.name:
        raise ClusterError(f"image: is that of {held}, not of {place.stage.name}", hint="build and push it again")
    return f"pulled; whence {__version__}, uid {os.getuid()}"


def _store(place: Place) -> str:
    """What Kubeflow has stored for an earlier task arrived here; with keys of its own a task reads and writes, too."""
    words = []
    if place.artifact is not None:
        words.append(f"{place.artifact} stored and fetched by Kubeflow")
        if is_address(place.artifact) and os.environ.get("AWS_ACCESS_KEY_ID"):
            s3.read_text(place.artifact, "store", StorageError)
            check_writable(place.artifact.rpartition("/")[0])
            words.append("read and written with this task's key")
    dataset = place.config.dataset
    for address in filter(is_address, (*dataset.train_files, *dataset.eval_files)):
        s3.require(address, "dataset.train_files, dataset.eval_files")
        words.append(f"{address} read")
    return "; ".join(words)


def _hub(place: Place) -> str:
    """The hub or its mirror answers for what the settings name there."""
    config = place.config
    names = {"models.base.name": config.models.base.name, "dataset.name": config.dataset.name or "builtin:"}
    if config.evaluation.mmlu.enabled and config.evaluation.mmlu.source == "hub":
        names["evaluation.mmlu.source"] = "cais/mmlu"
    asked = {key: name for key, name in names.items() if not name.startswith("builtin:") and not Path(name).is_dir()}
    if not asked or importlib.util.find_spec("huggingface_hub") is None:  # images that only draw have no need of it
        return ""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return "not asked: HF_HUB_OFFLINE is set, so everything must be in the cache"
    api = HfApi()
    for key, name in asked.items():
        try:
            (api.model_info if key == "models.base.name" else api.dataset_info)(name, timeout=10)
        except Exception as error:  # httpx's, the hub's, and those of a wrong HF_ENDPOINT
            raise ClusterError(
                f"{key}: {constants.ENDPOINT} does not give {name} ({type(error).__name__})",
                hint="name a mirror in HF_ENDPOINT or a proxy in HTTPS_PROXY, and a token in HF_TOKEN if it is private "
                "or gated",
            ) from error
    return f"{constants.ENDPOINT} has {', '.join(asked.values())}"


def _gpu(place: Place) -> str:
    """PyTorch in this image sees the accelerator."""
    wanted = place.config.general.device == "cuda"
    if place.stage is not None:
        wanted = place.stage.gpu and place.config.cluster.accelerator_count > 0
    if not wanted:
        return ""
    import torch

    driver = Path("/proc/driver/nvidia/version")
    version = driver.read_text(encoding="utf-8").partition("\n")[0] if driver.is_file() else "no NVIDIA driver seen"
    if torch.version.cuda is None:
        raise ClusterError(f"GPU: torch {torch.__version__} here is for CPUs", hint="build the images with TORCH=cuda")
    if not torch.cuda.is_available():
        raise ClusterError(
            f"GPU: torch for CUDA {torch.version.cuda} sees none ({version})",
            hint="check cluster.accelerator, gpu_node_selector and the node's driver",
        )
    free, total = torch.cuda.mem_get_info()
    if free < total / 2:
        raise ClusterError(
            f"GPU: {torch.cuda.get_device_name()} has {_size(free)} of {_size(total)} free",
            hint="another process uses it: give tasks whole accelerators",
        )
    return f"{torch.cuda.get_device_name()}, {_size(free)} of {_size(total)} free; {version}"


def _shared_memory(place: Place) -> str:
    if place.stage is None:
        return ""
    asked = amount(place.config.cluster.resources(place.stage.name, place.stage.gpu).shm)
    state = os.statvfs("/dev/shm")
    size = state.f_blocks * state.f_frsize
    if size < 0.9 * asked:
        raise ClusterError(
            f"/dev/shm: has {_size(size)}, and cluster settings ask for {_size(asked)}",
            hint="lower shm, or allow emptyDir volumes of medium Memory",
        )
    return _size(size)


def _volumes(place: Place) -> str:
    """The work volume, the hub's cache and the disk of temporary files can be written by this user."""
    folders = {
        "general.work_dir": place.config.general.work_dir,
        "HF_HOME": os.environ.get("HF_HOME"),
        "TMPDIR": tempfile.gettempdir(),
    }
    words = []
    for name, folder in folders.items():
        if folder is None:
            continue
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"whence")
            state = os.statvfs(folder)
        except OSError as error:
            raise ClusterError(
                f"{name}: uid {os.getuid()} cannot write {folder} ({error.strerror})",
                hint="give the volume to that user, or set cluster.user to its owner",
            ) from error
        words.append(f"uid {os.getuid()} writes {folder}, {_size(state.f_bavail * state.f_frsize)} free")
    return "; ".join(words)


def _rights(place: Place) -> str:
    """The service account may do what Kubeflow and Argo do in its name. Asked of Kubernetes, which tells everybody."""
    token = SERVICE_ACCOUNT / "token"
    if not token.is_file():
        return ""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to the cluster's own API
        session.headers["Authorization"] = f"Bearer {token.read_text(encoding='utf-8').strip()}"
        for right in RIGHTS:
            body = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
            review = {**body, "spec": {"resourceAttributes": {"namespace": namespace, **right}}}
            try:
                answer = session.post(url, json=review, timeout=10, verify=str(SERVICE_ACCOUNT / "ca.crt"))
                answer.raise_for_status()
                allowed = answer.json()["status"]["allowed"]
            except (requests.RequestException, ValueError, KeyError) as error:
                raise ClusterError(
                    f"rights: the Kubernetes API at {host}:{port} does not answer ({type(error).__name__})",
                    hint="network policies must let runs reach its port (`outside` in the overlay's reach.yaml)",
                ) from error
            if not allowed:
                raise ClusterError(
                    f"rights: the service account may not {right['verb']} {right['resource']} in {namespace}",
                    hint="give --service-account whence-runner, or that account the Role of k8s/base/runs",
                )
    return f"the service account may do in {namespace} what runs need"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


CHECKS: dict[str, Callable[[Place], str]] = {
    "image": _image,
    "store": _store,
    "MLflow": lambda place: try_tracking(place.config),
    "hub": _hub,
    "GPU": _gpu,
    "/dev/shm": _shared_memory,
    "volumes": _volumes,
    "rights": _rights,
    "network": lambda place: settings_of_the_network(),
}
